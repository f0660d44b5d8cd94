"""Serves with gunicorn: its settings, and a worker that slow clients can't block."""
