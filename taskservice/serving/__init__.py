"""How gunicorn serves the application: settings, and a worker that slow clients can't block."""
