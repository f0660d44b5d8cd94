"""The types of rows, which follow from the models: mypy reports a misspelt column."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskservice.database import models

    class _Row:
        """A named tuple, or a namespace with the same names: columns, and additional values."""

        def _asdict(self) -> dict[str, Any]: ...

    class AgentRow(models.Agent, _Row):
        # The newest start of a task; None without tasks.
        last_used_at: str | None

    class HookRow(models.Hook, _Row):
        # Null unless it fails.
        failing_since: str | None

    class KeyRow(models.ApiKey, _Row):
        user_name: str
        # Only for a link, which acts as a key.
        task_id: str

    class LinkRow(models.Link, _Row): ...

    class QuestionRow(models.Question, _Row):
        task_name: str
        agent_name: str
        user_id: str
        user_name: str

    class TaskRow(models.Task, _Row):
        log_id: int | None
        # In a list, unless it is large.
        json: bytes | None
        # The text of a small log.
        lines: str | None

    class EndedTaskRow(TaskRow):
        finished_at: str

    class UserRow(models.User, _Row): ...
else:
    AgentRow = EndedTaskRow = HookRow = KeyRow = LinkRow = Any
    QuestionRow = TaskRow = UserRow = Any
