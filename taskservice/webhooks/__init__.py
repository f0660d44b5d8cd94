"""Signed webhooks and messages; the package uses neither the database nor the settings."""
