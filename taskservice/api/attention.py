"""The route of what needs attention."""

from flask import Blueprint, Response

from taskservice.auth import caller
from taskservice.schemas.users import attention_schema
from taskservice.services import attention
from taskservice.web import responses
from taskservice.web.request import operation

blueprint = Blueprint("attention", __name__)


@blueprint.get("/attention")
@operation("listAttention", responses={200: [attention_schema]})
def list_all() -> Response:
    """List what needs attention.

    At most 100 things for a person to look at: the most urgent kind first, the oldest of each kind
    first. An agent key gets what concerns its agent, without callbacks and hooks.
    """
    return responses.json(attention.list_all(caller))
