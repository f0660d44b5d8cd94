"""What the service and the agent side share: terms, limits, error codes, headers, output."""
