"""Routes for whoever operates the service; they need no key."""

from flask import Blueprint, Response

from taskservice.openapi.operation import TEXT
from taskservice.operations import health, metrics
from taskservice.schemas.answers import health_schema
from taskservice.web import responses
from taskservice.web.request import operation

operations = Blueprint("operations", __name__)

# Prometheus asks for a version of plain text, a person for any.
METRICS_TYPES = (TEXT, f"{TEXT}; version=0.0.4")
METRICS_EXAMPLE = """\
# HELP taskservice_tasks Tasks by status.
# TYPE taskservice_tasks gauge
taskservice_tasks{status="running"} 3
"""


@operations.get("/livez")
@operation("isLive", answers={200: health_schema})
def live() -> Response:
    """Liveness.

    The process is up, whatever the database does.
    """
    return responses.json({"status": "ok"})


@operations.get("/readyz")
@operation("isReady", answers={200: health_schema})
def ready() -> Response:
    """Readiness.

    The database can be read and written; 503 where it can't, or gives no answer in a second.
    """
    health.require_usable()
    return responses.json({"status": "ok"})


@operations.get("/metrics")
@operation("getMetrics", answers={200: METRICS_TYPES}, example=METRICS_EXAMPLE)
def show_metrics() -> Response:
    """Metrics.

    What there is to watch, as Prometheus reads it, of all worker processes together. Where the
    database gives no answer, what is known without it.
    """
    families = [metrics.build(), *metrics.requests.metrics(), *health.measures()]
    return Response(metrics.text(families), content_type=metrics.CONTENT_TYPE)
