"""What the service and the agent side both know: terms, limits, error codes, headers."""
