"""The caller, and what the caller may see: one SQL predicate for each kind of thing."""

from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, bindparam, or_
from sqlalchemy.types import Text

from taskservice.database.models import Agent, ApiKey, Task
from taskservice.database.types import Identifier
from taskservice.errors import Problem


class Caller(NamedTuple):
    """The user whom an API key belongs to; an agent key narrows it to one agent."""

    user_id: str
    agent_id: str | None
    key_id: str
    key_name: str
    user_name: str

    @property
    def scope(self) -> dict[str, str | None]:
        """The parameters of `visible_tasks`, `visible_agents` and `visible_keys`."""
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
visible_keys: ColumnElement[bool] = ApiKey.user_id == _user_id
# The same as two filters for lists: the `OR` above would keep SQLite from using an index.
of_user: ColumnElement[bool] = Task.user_id == bindparam("user_id", type_=Identifier)
