"""The operations of the service. Each module handles one kind of object, such as hooks."""
