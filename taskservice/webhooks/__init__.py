"""Sends signed webhooks, safely: a pure library that knows no database and no settings."""
