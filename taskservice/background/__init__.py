"""What belongs to no request: deliveries that are due, timeouts, retention, and disk space."""
