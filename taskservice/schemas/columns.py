"""The columns that reads select: those of the answers, and those that code needs."""

from taskservice.database.models import ApiKey, Attempt, Delivery, Question, Task
from taskservice.schemas.fields import StoredJson
from taskservice.schemas.tasks import attempt_schema, delivery_schema, question_schema, task_schema
from taskservice.schemas.users import agent_of_task_schema, agent_schema, key_schema, user_schema

TASK_COLUMNS = (
    *task_schema.columns.values(),
    Task.error_message,
    Task.log_bytes,
    Task.version,
)
# Field -> column, for those that may contain a megabyte.
LARGE_COLUMNS = {
    name: column
    for name, column in task_schema.columns.items()
    if isinstance(task_schema.fields[name], StoredJson)
}
AGENT_COLUMNS = tuple(agent_schema.columns.values())
AGENT_OF_TASK_COLUMNS = tuple(agent_of_task_schema.columns.values())
USER_COLUMNS = tuple(user_schema.columns.values())
KEY_COLUMNS = (*key_schema.columns.values(), ApiKey.user_id)
DELIVERY_COLUMNS = (*delivery_schema.columns.values(), Delivery.task_id)
QUESTION_COLUMNS = (*question_schema.columns.values(), Question.task_id)
ATTEMPT_COLUMNS = (*attempt_schema.columns.values(), Attempt.delivery_id, Attempt.answer)
