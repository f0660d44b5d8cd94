"""The pages of the dashboard over HTTP, without a browser."""
