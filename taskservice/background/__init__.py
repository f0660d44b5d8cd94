"""Work outside of requests: due deliveries, timeouts, retention and disk space."""
