"""Routes for operators: liveness, readiness, metrics; they need no key."""

from flask import Blueprint, Response, current_app

from taskservice.operations import health, metrics
from taskservice.schemas.tasks import health_schema, readiness_schema
from taskservice.web import responses
from taskservice.web.request import TEXT, operation

blueprint = Blueprint("operations", __name__)

# Prometheus asks for this version of plain text, a person for any.
METRICS_TYPES = (TEXT, f"{TEXT}; version=0.0.4")
METRICS_EXAMPLE = """\
# HELP taskservice_tasks Tasks by status.
# TYPE taskservice_tasks gauge
taskservice_tasks{status="running"} 3
"""


@blueprint.get("/livez")
@operation("isLive", answers={200: health_schema})
def live() -> Response:
    """Liveness.

    200 while the process runs, whatever the state of the database.
    """
    return responses.json({"status": "ok"})


@blueprint.get("/readyz")
@operation("isReady", answers={200: readiness_schema})
def ready() -> Response:
    """Readiness.

    200 when the database can be read and written; 503 when it cannot, or does not answer within
    one second. `notice` is there when the server does no background work.
    """
    health.require_usable()
    notice = current_app.config.get("NOTICE")
    return responses.json({"status": "ok"} | ({"notice": notice} if notice else {}))


@blueprint.get("/metrics")
@operation("getMetrics", answers={200: METRICS_TYPES}, example=METRICS_EXAMPLE)
def show_metrics() -> Response:
    """Metrics.

    All worker processes together, in the Prometheus text format. Without an answer from the
    database, only the metrics that do not need it.
    """
    families = [metrics.build(), *metrics.requests.metrics(), *health.database_metrics()]
    return Response(metrics.text(families), content_type=metrics.CONTENT_TYPE)
