"""Removes a user with all that belongs to the user, in small transactions."""

from collections.abc import Sequence
from math import inf

from sqlalchemy import Connection, and_, bindparam, delete, literal, select

from taskservice import resources
from taskservice.background import removal as sweep
from taskservice.background import upkeep
from taskservice.background.batches import in_batches
from taskservice.background.removal import TaskBatches
from taskservice.database import clock
from taskservice.database.models import Agent, Task, User
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import AnyRow, Identifier
from taskservice.services.keys import LOCK_USER, get_user_id, revoke_keys_of
from taskservice.services.tasks import remove

# How many tasks the last transaction removes at most.
LAST_TASKS = 100
# The pause until other requests have released the tasks that they change.
PAUSE_SECONDS = 0.1

_USER_ID = bindparam("user_id", type_=Identifier)
_of_user = Task.user_id == _USER_ID
# Those that are started meanwhile would keep it from ever coming to an end.
_until_now = and_(_of_user, Task.id <= bindparam("newest", type_=Identifier))
_TASKS = select(Task.id, literal(0).label("bytes")).where(_until_now)
_LOCK_AGENTS = select(Agent.id).where(Agent.user_id == _USER_ID).with_for_update()
_LAST = select(Task.id).where(_of_user).limit(LAST_TASKS + 1)
_LOCK_LAST = _LAST.with_for_update(skip_locked=True)
# The agents, keys and callback secrets follow.
_DELETE_USER = delete(User).where(User.id == bindparam("of_user_id", type_=Identifier))


def remove_user(name: str) -> int:
    """Remove a user with all that belongs to the user; returns the number of tasks.

    The tasks come first, since an agent stops when its task is gone. Keys work until no task is
    left, or until all are gone that were there at first and too many have been started meanwhile.
    Interrupted and repeated, it continues. Raises 404.
    """
    with reading() as connection:
        user_id = get_user_id(connection, name)
    removal = _Removal(user_id)
    while not removal.run():
        resources.stopping.wait(PAUSE_SECONDS)
    _sweep()
    sweep.shrink(inf)
    return removal.tasks


def _sweep() -> None:
    """Remove the lines of the removed tasks, and their names in the index."""
    upkeep.index_names(inf)
    sweep.sweep(inf)


class _Removal:
    """The removal of one user."""

    def __init__(self, user_id: str) -> None:
        self._user_id = user_id
        self.tasks = 0

    def run(self) -> bool:
        """Remove the tasks that no request is changing, then the user if that were about all."""
        values = {"user_id": self._user_id, "newest": clock.new_id()}
        in_batches(TaskBatches(_TASKS, _until_now, values, self._remove_tasks).next, inf)
        # While the user exists: a command that is killed meanwhile can be repeated.
        _sweep()
        with transaction() as connection:
            return self._remove_last(connection)

    def _remove_tasks(self, connection: Connection, tasks: Sequence[AnyRow]) -> bool:
        return self._remove(connection, [task.id for task in tasks])

    def _remove(self, connection: Connection, task_ids: Sequence[str]) -> bool:
        is_done = remove(connection, task_ids, sweep.SWEEP_AFTER_SECONDS)
        self.tasks += len(task_ids) * is_done
        return is_done

    def _remove_last(self, connection: Connection) -> bool:
        """Remove the user, with the tasks that were started meanwhile if they are few."""
        values = {"user_id": self._user_id}
        # From here on no task, agent or key is added. The order is that of the foreign keys of
        # tasks, which lock both when a task is started.
        connection.execute(_LOCK_AGENTS, values)
        connection.execute(LOCK_USER, values)
        task_ids = connection.scalars(_LAST, values).all()
        # To wait for a task with the user locked could be a deadlock.
        locked = connection.scalars(_LOCK_LAST, values).all()
        if len(task_ids) > LAST_TASKS:
            # They are started faster than they are removed.
            revoke_keys_of(connection, self._user_id)
            return False
        if len(locked) < len(task_ids):
            return False
        if task_ids and not self._remove(connection, task_ids):
            return False
        connection.execute(_DELETE_USER, {"of_user_id": self._user_id})
        return True
