"""What a route declares: its endpoint checks requests by it, and OpenAPI documents it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from marshmallow import Schema

from taskservice.schemas.requests import EmptySchema

JSON = "application/json"
TEXT = "text/plain"
EVENTS = "text/event-stream"

# A JSON object is given by its schema, an array by a list of one schema, text by its media type.
# A tuple means any one of its elements. A mapping gives the schema of another media type.
Body: TypeAlias = Schema | list[Schema] | str
Content: TypeAlias = Body | tuple[Body, ...] | Mapping[str, Schema] | None


@dataclass(frozen=True)
class Operation:
    """One operation of the API; `name` is its name in generated clients.

    `taskservice.openapi.components` has what all operations have in common.
    """

    name: str
    query: Schema = field(default_factory=EmptySchema)
    # `body` is loaded and passed to the view; `reads` is what the view reads by itself.
    body: Schema | None = None
    reads: Content = None
    # Names of request headers that are read, and of headers of successful answers.
    headers: Sequence[str] = ()
    answer_headers: Sequence[str] = ()
    # The content of successful answers, by status.
    answers: Mapping[int, Content] = field(default_factory=dict)
    # The error codes that only some operations have.
    errors: Sequence[str] = ()
    # Whether its body may be as large as the settings say, in place of MAX_SMALL_BODY.
    large_body: bool = False
    # Whether agent keys are refused.
    user_key: bool = False
    # Members that replace those of the schema's example in the example of an answer.
    example: Mapping[str, Any] | str = field(default_factory=dict)

    @property
    def request_content(self) -> dict[str, Any]:
        return by_media_type(self.body or self.reads)

    @property
    def media_types(self) -> tuple[str, ...]:
        """The media types of successful answers."""
        contents = map(by_media_type, self.answers.values())
        return tuple(dict.fromkeys(kind for content in contents for kind in content))


def is_optional(body: Schema) -> bool:
    """Whether a request may leave this body out: then none of its fields is required."""
    return not any(field.required for field in body.fields.values())


def by_media_type(content: Content) -> dict[str, Any]:
    """Media type -> the schema, a list of the one schema, or None for text."""
    if content is None:
        return {}
    if isinstance(content, Mapping):
        return dict(content)
    bodies = content if isinstance(content, tuple) else (content,)
    return dict((body, None) if isinstance(body, str) else (JSON, body) for body in bodies)
