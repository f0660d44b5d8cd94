"""The background threads of a server process: deliveries, timeouts, retention and disk space."""
