"""Background work of a process: due deliveries, timeouts, retention and disk space."""
