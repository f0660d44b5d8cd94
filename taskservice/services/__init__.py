"""The operations of the service, with a module for each noun; only they write for requests."""
