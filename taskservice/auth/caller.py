"""The caller, and as one SQL predicate what the caller may see."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, bindparam, or_
from sqlalchemy.types import Text

from taskservice.database.models import Agent, Identifier, Task
from taskservice.problems import Problem


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever holds an API key: a user, narrowed by an agent key to one agent of it."""

    user_id: str
    agent_id: str | None
    key_id: str

    @property
    def scope(self) -> dict[str, str | None]:
        """The values that `visible_tasks` and `visible_agents` want."""
        return {"caller_user_id": self.user_id, "caller_agent_id": self.agent_id}

    def require_user_key(self) -> None:
        if self.agent_id is not None:
            raise Problem(403, "An agent key may not do this; use a user key")


_user_id = bindparam("caller_user_id", type_=Identifier)
_agent_id = bindparam("caller_agent_id", type_=Text())

visible_tasks: ColumnElement[bool] = and_(
    Task.user_id == _user_id, or_(_agent_id.is_(None), Task.agent_id == _agent_id)
)
visible_agents: ColumnElement[bool] = and_(
    Agent.user_id == _user_id, or_(_agent_id.is_(None), Agent.id == _agent_id)
)
