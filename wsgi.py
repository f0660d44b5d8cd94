"""The WSGI application in a clone; an installed package has it as `taskservice.wsgi:app`."""

from taskservice.wsgi import app as app
