"""The settings for `gunicorn -c python:taskservice.serving.gunicorn_config wsgi:app`."""

from taskservice.config import Config, ConfigError
from taskservice.serving.settings import gunicorn_settings
from taskservice.terminal import give_up

try:
    # gunicorn reads its settings from the module's globals.
    globals().update(gunicorn_settings(Config.from_environment()))
except ConfigError as error:
    give_up(str(error), 2)
