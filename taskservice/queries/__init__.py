"""Every read, by noun, as Core selects on the read engine."""
