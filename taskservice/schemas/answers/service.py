"""Problems, the health of the service and its OpenAPI document."""

from marshmallow import INCLUDE, Schema, fields, validate

from taskservice.schemas.fields import EXAMPLE_REQUEST, doc
from taskservice.schemas.rows import AnswerSchema
from taskservice.schemas.tasks import FinishedTaskSchema, QuestionSchema
from taskservice.terms import CODES


class HealthSchema(AnswerSchema):
    """The service is healthy."""

    status = fields.String(required=True, validate=validate.Equal("ok"), metadata=doc("ok.", "ok"))


class ProblemSchema(AnswerSchema):
    """An error, in the format of RFC 9457."""

    type = fields.String(required=True, metadata=doc("The type of problem, a URI.", "about:blank"))
    title = fields.String(required=True, metadata=doc("The status in words.", "Not Found"))
    status = fields.Integer(required=True, metadata=doc("The HTTP status.", 404))
    detail = fields.String(
        required=True, metadata=doc("What is wrong, in one sentence.", "Task's ID is not found")
    )
    code = fields.String(
        required=True,
        validate=validate.OneOf(CODES),
        metadata=doc(
            "The kind of error, for programs. "
            + " ".join(
                f"`{code}` ({status}): {meaning}" for code, (status, meaning) in CODES.items()
            ),
            "not_found",
        ),
    )
    errors = fields.Dict(
        metadata=doc(
            "With 422: field, parameter or header -> messages, nested like the request.",
        )
    )
    task = fields.Nested(FinishedTaskSchema())
    question = fields.Nested(QuestionSchema())
    expected = fields.Integer(
        metadata=doc("With 409 at an append: the `seq` of the writer's next line.")
    )
    requestId = fields.String(
        metadata=doc(
            "The request's id, as in the service's own log; not with 401.", EXAMPLE_REQUEST
        ),
    )


class DocumentSchema(Schema):
    """An OpenAPI document."""

    class Meta:
        unknown = INCLUDE

    openapi = fields.String(required=True, metadata=doc("The version of OpenAPI.", "3.1.0"))
    info = fields.Dict(required=True, metadata=doc("What it is.", {"title": "taskservice"}))
    paths = fields.Dict(required=True, metadata=doc("The operations.", {}))


problem_schema = ProblemSchema()

document_schema = DocumentSchema()

health_schema = HealthSchema()
