"""Users, their keys and their secrets as they are answered."""

from marshmallow import fields

from taskservice.database.models import ApiKey, CallbackSecret, User
from taskservice.schemas.fields import (
    EXAMPLE_KEY,
    EXAMPLE_KEY_TEXT,
    EXAMPLE_MOMENT,
    EXAMPLE_USER,
    doc,
    id_field,
    moment_field,
)
from taskservice.schemas.rows import RowSchema


class UserSchema(RowSchema):
    """The person or team that owns tasks, agents and keys."""

    id = id_field("The user's id.", EXAMPLE_USER, column=User.id)
    name = fields.String(metadata=doc("The user's name.", "alice", column=User.name))
    createdAt = moment_field("When the user was added.", EXAMPLE_MOMENT, User.created_at)


class KeySchema(RowSchema):
    """An API key, without its text."""

    id = id_field("The key's id.", EXAMPLE_KEY, column=ApiKey.id)
    name = fields.String(metadata=doc("The key's name.", "laptop", column=ApiKey.name))
    hint = fields.String(
        metadata=doc(
            "The first and last characters of its text.", "tsk_agent_…Xk2P", column=ApiKey.hint
        )
    )
    agentId = fields.String(
        allow_none=True,
        metadata=doc(
            "The agent that it is limited to; null for a user key.",
            "summarizer",
            column=ApiKey.agent_id,
        ),
    )
    createdAt = moment_field("When it was created.", EXAMPLE_MOMENT, ApiKey.created_at)
    expiresAt = moment_field("When it expires.", None, ApiKey.expires_at)
    lastUsedAt = moment_field("The minute in which it was last used.", None, ApiKey.last_used_at)
    revokedAt = moment_field("When it was revoked.", None, ApiKey.revoked_at)


class KeyWithSecretSchema(KeySchema):
    """A new key, with its text: no other answer has the text."""

    key = fields.String(
        attribute="text",
        metadata=doc("The text of the key, for the header `apikey`.", EXAMPLE_KEY_TEXT),
    )


class CallbackSecretSchema(RowSchema):
    """The secret that signs a user's webhooks."""

    secret = fields.String(
        metadata=doc(
            "The secret, in the format of Standard Webhooks.",
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            column=CallbackSecret.secret,
        )
    )
    createdAt = moment_field("When it was created.", EXAMPLE_MOMENT, CallbackSecret.created_at)


class WhoAmISchema(UserSchema):
    """A user, and the key of the request."""

    key = fields.Nested(KeySchema())


user_schema = UserSchema()

key_schema = KeySchema()

key_with_secret_schema = KeyWithSecretSchema()

callback_secret_schema = CallbackSecretSchema()

who_am_i_schema = WhoAmISchema()
