"""Shared by the API and the dashboard: request reading, responses, long polls, event streams."""
