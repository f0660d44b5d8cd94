"""`POST /mcp`, over HTTP."""
