"""Imports modules at a start without work whose result the start does not need."""

import gc
import re
from importlib import import_module
from typing import Any

compile_pattern = re.compile


class LatePattern:
    """A regular expression that is compiled at its first use."""

    def __init__(self, pattern: str, flags: int) -> None:
        self._pattern, self._flags = pattern, flags

    def __getattr__(self, name: str) -> Any:
        # An abstract class asks all that it has for `__isabstractmethod__`.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(compile_pattern(self._pattern, self._flags), name)


def quick_import(name: str) -> Any:
    """The module of this name; for the main thread, before there are others."""
    # What modules create is no garbage; looking for it takes a tenth of the time.
    gc.disable()
    re.compile = _compile_now_or_late
    try:
        return import_module(name)
    finally:
        re.compile = compile_pattern
        gc.freeze()
        gc.enable()


def _compile_now_or_late(pattern: Any, flags: int = 0) -> Any:
    # Where case is ignored, each range up to U+FFFF takes 5 ms. marshmallow has five in the pattern
    # of a field for e-mail addresses, which no schema of ours has.
    is_slow = flags & re.IGNORECASE and isinstance(pattern, str) and "\uffff" in pattern
    return LatePattern(pattern, flags) if is_slow else compile_pattern(pattern, flags)
