"""What forms share: their texts, and what is wrong with them in words."""

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError
from werkzeug.datastructures import MultiDict

from taskservice.errors import Problem


def texts(form: MultiDict[str, str]) -> dict[str, list[str]]:
    """The texts of each field, as the API would have them: without NUL, lines ending at LF."""
    return {
        name: [text.replace("\0", "\ufffd").replace("\r\n", "\n") for text in values]
        for name, values in form.lists()
    }


def sentence(error: Problem | ValidationError) -> str:
    """What is wrong, for a person. Raises an error that is not about the form's fields."""
    return sentence_of(errors_of(error))


def errors_of(error: Problem | ValidationError) -> dict[str, Any]:
    """Field -> what is wrong with it. Raises an error that is not about the form's fields."""
    errors: Any = error.messages if isinstance(error, ValidationError) else error.more.get("errors")
    if not errors:
        raise error
    return dict(errors)


def sentence_of(errors: Mapping[str, Any]) -> str:
    return " ".join(
        f"{field[:1].upper()}{field[1:]}: {_text(messages)}" for field, messages in errors.items()
    )


def _text(messages: Any) -> str:
    if isinstance(messages, dict):
        return " ".join(f"{key}: {_text(inner)}" for key, inner in messages.items())
    return messages if isinstance(messages, str) else " ".join(messages)
