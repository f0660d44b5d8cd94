"""The requirements of tests on the machine."""

import os
from typing import NoReturn

import pytest


def needs(thing: str, remedy: object) -> NoReturn:
    """Skip on a machine that lacks a program, with a hint; in CI, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have {thing}: {remedy}")
    pytest.skip(f"no {thing}: {remedy}")
