"""What a test needs of the machine."""

import os
from typing import NoReturn

import pytest


def needs(thing: str, remedy: object) -> NoReturn:
    """Skip on a machine that lacks a thing, saying what to do; in CI nothing may be lacking."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have {thing}: {remedy}")
    pytest.skip(f"no {thing}: {remedy}")
