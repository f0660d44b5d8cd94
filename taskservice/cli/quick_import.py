"""Imports modules at a start without work whose result the start does not need."""

import gc
from importlib import import_module
from typing import Any


def quick_import(name: str) -> Any:
    """The module of this name; for the main thread, before there are others."""
    # What modules create is no garbage; looking for it takes a tenth of the time.
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        gc.enable()
