"""For operators: health, metrics, the request log, the database check, backups."""
