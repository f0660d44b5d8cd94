"""The operations of the service, with a module for each noun; requests write through them."""
