"""Tells a model in plain words why a call was refused, where it can correct that."""

from collections.abc import Iterator
from typing import Any

from marshmallow import ValidationError

from taskservice import errors as problems
from taskservice.errors import Problem
from taskservice.schemas import strict_json

# What is not there, not possible at present, or invalid.
CORRECTABLE = (404, 409, 422)
REFUSED = (Problem, ValidationError)


def reason(error: Exception) -> str:
    """Why it was refused. Raises the error itself if another call would not help."""
    problem = problems.from_exception(error)
    if problem.status not in CORRECTABLE:
        raise error
    errors = problem.more.get("errors")
    if errors:
        return " ".join(_sentences(errors))
    answer = problem.more.get("question", {}).get("answer")
    given = "" if answer is None else f": {strict_json.dumps(answer).decode()}"
    return f"{problem.detail}{given}."


def _sentences(errors: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, inner in errors.items():
        place = f"{path}{name}"
        if isinstance(inner, dict):
            yield from _sentences(inner, f"{place}.")
        else:
            yield f"{place}: {' '.join(map(str, inner))}"
