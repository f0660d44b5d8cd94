"""Operators' tools: health, metrics, request log, database check, backup, restore and copy."""
