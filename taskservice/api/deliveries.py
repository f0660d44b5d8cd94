"""Routes of a task's deliveries: what became of its webhooks, and once more."""

from flask import Blueprint, Response

from taskservice.api.tasks import known
from taskservice.auth.authentication import caller
from taskservice.contract.error_codes import DELIVERY_UNDER_WAY, NO_DELIVERY
from taskservice.problems import not_found
from taskservice.queries import deliveries as delivery_queries
from taskservice.queries import tasks as task_queries
from taskservice.schemas.answers import delivery_schema
from taskservice.schemas.fields import EXAMPLE_MOMENT
from taskservice.services import deliveries as delivery_service
from taskservice.web import responses
from taskservice.web.request import operation

deliveries = Blueprint("deliveries", __name__)


@deliveries.get("/task/<task_id>/deliveries")
@operation("listDeliveries", user_key=True, answers={200: [delivery_schema]})
def list_all(task_id: str) -> Response:
    """List a task's deliveries.

    Newest first, each with all attempts to post it. None while the task runs, or when it has
    no callback; a second one only after a task that was ended for silence was finished by its
    agent.
    """
    task_id = known(task_id)
    rows = delivery_queries.list_of_task(caller, task_id)
    if not rows and task_queries.find(caller, task_id) is None:
        raise not_found("Task")
    return responses.dump(delivery_schema, rows, many=True)


@deliveries.post("/task/<task_id>/deliveries")
@operation(
    "redeliver",
    user_key=True,
    answers={202: delivery_schema},
    errors=[NO_DELIVERY, DELIVERY_UNDER_WAY],
    example={"nextAttemptAt": EXAMPLE_MOMENT},
)
def redeliver(task_id: str) -> Response:
    """Deliver once more.

    Makes the newest delivery due now, whatever its state, with all attempts before it; one
    that is pending does not wait any longer. It is posted soon after this answer, under the
    same `webhook-id`, with the task as it then is.
    """
    delivery = delivery_queries.find(delivery_service.redeliver(caller, known(task_id)))
    if delivery is None:  # deleted meanwhile
        raise not_found("Task")
    return responses.dump(delivery_schema, delivery, 202)
