"""The operations of the service, one module for each noun: requests write to the database here."""
