"""The types of rows, derived from the models, so that mypy reports a misspelt column."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskservice.database import models

    class _Row:
        """A named tuple or a namespace, with the columns of the model and additional values."""

        def _asdict(self) -> dict[str, Any]: ...

    class AgentRow(models.Agent, _Row):
        # When the newest task was started; None if the agent has no tasks.
        last_used_at: str | None

    class HookRow(models.Hook, _Row):
        # None if the hook is not failing.
        failing_since: str | None

    class KeyRow(models.ApiKey, _Row):
        user_name: str
        # Only in the row of a link, which gives access in the same way as a key.
        task_id: str

    class LinkRow(models.Link, _Row): ...

    class QuestionRow(models.Question, _Row):
        task_name: str
        agent_name: str
        user_id: str
        user_name: str

    class TaskRow(models.Task, _Row):
        log_id: int | None
        # The task as JSON; only in a list, and None for a large task.
        json: bytes | None
        # The lines of a small log, joined with line feeds.
        lines: str | None

    class EndedTaskRow(TaskRow):
        finished_at: str

    class UserRow(models.User, _Row): ...
else:
    AgentRow = EndedTaskRow = HookRow = KeyRow = LinkRow = Any
    QuestionRow = TaskRow = UserRow = Any
