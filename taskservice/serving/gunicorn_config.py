"""gunicorn's settings: `-c python:taskservice.serving.gunicorn_config taskservice.wsgi:app`."""

import os

from taskservice.config import PREFIX, Config, ConfigError
from taskservice.database.files import keep_owner_permissions
from taskservice.operations.request_log import log_notices
from taskservice.serving.settings import gunicorn_settings
from taskservice.terminal import exit_with_error

keep_owner_permissions()
log_notices(os.environ.get(f"{PREFIX}LOG_FORMAT", "").lower())
try:
    # gunicorn reads its settings from the globals of this module.
    globals().update(gunicorn_settings(Config.from_environment()))
except ConfigError as error:
    exit_with_error(str(error), 2)
