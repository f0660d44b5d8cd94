"""Requests, responses, long polls and event streams, for the API, MCP and the dashboard."""
