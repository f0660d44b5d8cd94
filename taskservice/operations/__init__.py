"""What an operator needs: health, metrics, the request log, the database check, backups."""
