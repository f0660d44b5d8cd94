"""What a route declares: its door checks by it, and the document tells it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from marshmallow import Schema

from taskservice.schemas.requests import NothingSchema

JSON = "application/json"
TEXT = "text/plain"
EVENTS = "text/event-stream"

# A JSON object by a schema; an array, as a list of its one schema; or text, as its media
# type. Several in a tuple: any one of them.
Body: TypeAlias = Schema | list[Schema] | str
Content: TypeAlias = Body | tuple[Body, ...] | None


@dataclass(frozen=True)
class Operation:
    """One operation of the API, under the name that generated clients know it by.

    What every operation has in common, or what follows from the rest, is not said here:
    see `taskservice.openapi.components`.
    """

    name: str
    query: Schema = field(default_factory=NothingSchema)
    # Loaded at the door and passed to the view; or else what the view reads by itself.
    body: Schema | None = None
    reads: Content = None
    # Names of request headers that count; and of headers that good answers have.
    headers: Sequence[str] = ()
    answer_headers: Sequence[str] = ()
    # What good answers contain, by status.
    answers: Mapping[int, Content] = field(default_factory=dict)
    # The codes of errors that come from what it does.
    errors: Sequence[str] = ()
    # Whether agent keys are refused.
    user_key: bool = False
    # What the example of its answer has instead of what the schema's example has.
    example: Mapping[str, Any] | str = field(default_factory=dict)

    @property
    def request_content(self) -> dict[str, Any]:
        return by_media_type(self.body or self.reads)

    @property
    def media_types(self) -> tuple[str, ...]:
        """What it can answer with when all goes well."""
        contents = map(by_media_type, self.answers.values())
        return tuple(dict.fromkeys(kind for content in contents for kind in content))


def by_media_type(content: Content) -> dict[str, Any]:
    """Media type -> the schema, a list of the one schema, or None for text."""
    if content is None:
        return {}
    bodies = content if isinstance(content, tuple) else (content,)
    return dict((body, None) if isinstance(body, str) else (JSON, body) for body in bodies)
