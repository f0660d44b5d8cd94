"""What the API and the dashboard share: reading requests, answering, waiting, streaming."""
