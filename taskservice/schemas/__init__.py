"""JSON in and out: strict JSON, fields, requests and responses."""
