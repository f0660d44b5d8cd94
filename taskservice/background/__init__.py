"""Work that belongs to no request: due deliveries, timeouts, retention and disk space."""
