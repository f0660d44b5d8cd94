"""Turns an API key into the caller, and says in SQL what the caller may see."""
