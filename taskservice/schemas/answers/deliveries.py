"""A delivery as it is answered, with its attempts."""

from marshmallow import fields, validate

from taskservice.database.models import Attempt, Delivery
from taskservice.schemas.fields import (
    EXAMPLE_ATTEMPT,
    EXAMPLE_DELIVERY,
    EXAMPLE_MOMENT,
    doc,
    id_field,
    moment_field,
)
from taskservice.schemas.rows import RowSchema
from taskservice.terms import DELIVERY_STATES, MAX_ATTEMPTS, PENDING


class AttemptSchema(RowSchema):
    """One attempt of a delivery."""

    at = moment_field("When it began.", EXAMPLE_MOMENT, Attempt.at)
    durationMs = fields.Integer(
        metadata=doc("Its duration in milliseconds.", minimum=0, column=Attempt.duration_ms)
    )
    statusCode = fields.Integer(
        allow_none=True,
        metadata=doc(
            "The receiver's HTTP status; null without an answer.", column=Attempt.status_code
        ),
    )
    message = fields.String(metadata=doc("Its outcome in one sentence.", column=Attempt.message))


class DeliverySchema(RowSchema):
    """One webhook for one callback."""

    id = id_field(
        "The delivery's id: the `webhook-id` of all its attempts.",
        EXAMPLE_DELIVERY,
        column=Delivery.id,
    )
    callback = fields.String(
        metadata=doc(
            "The URL that it is posted to.",
            "https://myapp.example/api/v1/callback/2100aaa",
            format="uri",
            column=Delivery.callback_url,
        ),
    )
    state = fields.String(
        validate=validate.OneOf(DELIVERY_STATES),
        metadata=doc(
            "`pending`: it will be posted; `delivered`: the receiver answered 2xx; "
            "`failed`: it will not be posted again; `cancelled`: a newer delivery replaced it.",
            PENDING,
            column=Delivery.state,
        ),
    )
    createdAt = moment_field("When the task ended.", EXAMPLE_MOMENT, Delivery.created_at)
    nextAttemptAt = moment_field(
        "When it is due; null unless it is pending.", None, Delivery.next_attempt_at
    )
    attempts = fields.List(
        fields.Nested(AttemptSchema()),
        metadata=doc(
            f"Its newest {MAX_ATTEMPTS} attempts, oldest first; older ones are deleted.",
            [EXAMPLE_ATTEMPT],
        ),
    )


delivery_schema = DeliverySchema()
