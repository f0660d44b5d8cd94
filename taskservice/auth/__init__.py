"""An API key becomes the caller, and what a caller may see is one SQL predicate."""
