"""What the bodies of requests may say."""

from marshmallow import Schema, fields, validate

from taskservice.contract.terms import (
    COMPLETE,
    FAILED,
    MAX_CALLBACK,
    MAX_DESCRIPTION,
    MAX_MESSAGE,
    MAX_TIMEOUT,
    MAX_WRITER,
    MAX_WRITERS,
    STATUSES,
)
from taskservice.schemas.fields import (
    Flag,
    JsonObject,
    Moment,
    Strings,
    WholeNumber,
    bytes_at_most,
    doc,
    name_field,
)


class NothingSchema(Schema):
    """A query string or body that has nothing to say."""


class StartSchema(Schema):
    """What a task is started with."""

    agentId = fields.String(
        required=True, metadata=doc("The agent that is to do it; registered.", "summarizer")
    )
    name = name_field("Its name; the agent's by default.", "nightly summary", allow_none=True)
    input = JsonObject(
        allow_none=True,
        metadata=doc("What its agent is to work on; at most 1 MiB.", {"mailbox": "office"}),
    )
    callback = fields.String(
        allow_none=True,
        validate=bytes_at_most(MAX_CALLBACK),
        metadata=doc(
            "Where a signed webhook goes when the task ends: http or https, a host, neither "
            "user info nor fragment.",
            "https://myapp.example/api/v1/callback/2100aaa",
            format="uri",
            maxLength=MAX_CALLBACK,
        ),
    )
    timeout = WholeNumber(
        allow_none=True,
        validate=validate.Range(0, MAX_TIMEOUT),
        metadata=doc(
            "Seconds for which a claimed task may stay silent before it ends; 0: for ever.", 3600
        ),
    )
    claim = Flag(allow_none=True, metadata=doc("Whether the caller takes it up right away.", False))


class FailureSchema(Schema):
    """Why a task failed. The service's own types can't be reported."""

    type = fields.String(validate=validate.Equal(FAILED), metadata=doc("`failed`, if it is given."))
    message = fields.String(
        required=True,
        validate=bytes_at_most(MAX_MESSAGE),
        metadata=doc("What went wrong, for a person.", maxLength=MAX_MESSAGE),
    )


class ReportSchema(Schema):
    """What is to change in a task."""

    status = fields.String(
        validate=validate.OneOf(STATUSES),
        metadata=doc("`complete` or `error` end the task.", COMPLETE),
    )
    output = JsonObject(
        metadata=doc("Each key given replaces that key whole; at most 1 MiB.", {"sum": 15})
    )
    error = fields.Nested(FailureSchema(), allow_none=True)
    name = name_field("Another name.")


class AppendSchema(Schema):
    """Lines to add to a log."""

    logs = Strings(
        fields.String(),
        required=True,
        metadata=doc(
            "Lines; a line feed in one makes several of it. At most 64 KiB each.",
            ["Synopsis: Running", "15 mails"],
        ),
    )
    seq = WholeNumber(
        allow_none=True,
        validate=validate.Range(1, 1 << 53),
        metadata=doc(
            "The number of the first line sent, counted from 1 by its writer: lines that are "
            "stored already are skipped.",
            1,
        ),
    )
    writer = fields.String(
        allow_none=True,
        validate=validate.Length(max=MAX_WRITER),
        metadata=doc(
            f"Who counts, where several write; empty by default. A task has at most "
            f"{MAX_WRITERS:,} of them.",
            "worker-1",
        ),
    )


class PutAgentSchema(Schema):
    """What an agent is registered with, or what is to change in it."""

    name = name_field("Its name; at first its id.", "Nightly summarizer", allow_none=True)
    description = fields.String(
        allow_none=True,
        validate=validate.Length(max=MAX_DESCRIPTION),
        metadata=doc("What it does.", "Sums up the day's mail."),
    )


class CreateKeySchema(Schema):
    """What a key is created with."""

    name = name_field("What to call it.", "laptop", required=True)
    agentId = fields.String(
        allow_none=True,
        metadata=doc("The one agent to which the key is narrowed; registered.", "summarizer"),
    )
    expiresAt = Moment(
        "From when on it no longer counts; never by default.",
        "2126-11-24T13:36:00Z",
        allow_none=True,
    )
