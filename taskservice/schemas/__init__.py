"""The JSON of requests and responses: strict parsing, fields and schemas."""
