"""gunicorn's settings for the service, and a worker that slow clients can't block."""
