"""Signed webhooks and messages, without database and settings."""
