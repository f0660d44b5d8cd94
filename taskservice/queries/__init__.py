"""All reads, by noun, as SQLAlchemy Core selects on the read engine."""
