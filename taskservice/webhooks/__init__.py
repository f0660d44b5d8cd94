"""Sends signed webhooks: a library that uses neither the database nor the settings."""
