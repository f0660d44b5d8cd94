"""Routes of a task's deliveries: list, redeliver."""

from flask import Blueprint, Response

from taskservice.auth import caller
from taskservice.schemas.fields import EXAMPLE_MOMENT
from taskservice.schemas.tasks import delivery_schema
from taskservice.services import deliveries as delivery_service
from taskservice.services import tasks
from taskservice.terms import DELIVERY_UNDER_WAY, NO_DELIVERY
from taskservice.web import responses
from taskservice.web.request import operation

blueprint = Blueprint("deliveries", __name__)


@blueprint.get("/task/<task_id>/deliveries")
@operation("listDeliveries", user_key=True, answers={200: [delivery_schema]})
def list_all(task_id: str) -> Response:
    """List a task's deliveries.

    Newest first, each with the newest attempts to post it. The list is empty while the task runs,
    and if it has no callback. Only a late report gives a task a second delivery.
    """
    tasks.get(caller, task_id)
    rows = delivery_service.list_of_task(caller, task_id)
    return responses.dump(delivery_schema, rows, many=True)


@blueprint.post("/task/<task_id>/deliveries")
@operation(
    "redeliver",
    user_key=True,
    answers={202: delivery_schema},
    errors=[NO_DELIVERY, DELIVERY_UNDER_WAY],
    example={"nextAttemptAt": EXAMPLE_MOMENT},
)
def redeliver(task_id: str) -> Response:
    """Deliver again.

    Makes the newest delivery due now, whatever its state, and begins its retry schedule anew. It
    is posted soon after this answer, with the same `webhook-id` and the task as it is then.
    """
    delivery = delivery_service.get(caller, delivery_service.redeliver(caller, task_id))
    return responses.dump(delivery_schema, delivery, 202)
