"""What the service can do, by noun: the only place where a write transaction begins and ends."""
