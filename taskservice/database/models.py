"""The tables, with their constraints and indexes."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    String,
    Text,
    TextClause,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import Mapped, configure_mappers, mapped_column

from taskservice import terms
from taskservice.database.types import Identifier, Model, Timestamp

# The default input schema and tool annotations of an agent.
INPUT_SCHEMA = '{"type":"object"}'
ANNOTATIONS = '{"readOnlyHint":false,"destructiveHint":true,"openWorldHint":true}'

# SQLite numbers rows automatically only in a column whose type is exactly INTEGER.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")


def partial_index(name: str, columns: str, where: str | TextClause, unique: bool = False) -> Index:
    """A partial index, declared only for SQLite; the migrations create it on both databases."""
    # With `postgresql_where`, SQLAlchemy would load PostgreSQL's dialect even for SQLite, which
    # would take a tenth of the service's startup time.
    return Index(name, *columns.split(", "), unique=unique, sqlite_where=text(str(where)))


def _one_of(column: str, *words: str) -> str:
    return f"{column} IN ({', '.join(repr(word) for word in words)})"


class User(Model):
    """A person or team that owns agents, tasks and keys."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[str] = mapped_column(Timestamp)


class CallbackSecret(Model):
    """A secret that signs a user's webhooks, until one day after it is replaced."""

    __tablename__ = "callback_secrets"

    id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    secret: Mapped[str]
    created_at: Mapped[str] = mapped_column(Timestamp)
    replaced_at: Mapped[str | None] = mapped_column(Timestamp)


IN_TROUBLE = text("state = 'broken' OR late_since IS NOT NULL")
IS_MUTED = text("muted_until IS NOT NULL")


class Agent(Model):
    """A named program or workflow; each execution is a task. The user chooses the agent's ID."""

    __tablename__ = "agents"
    __table_args__ = (
        # To find agents that become late, and agents that need attention.
        partial_index("agents_due", "late_at", "late_at IS NOT NULL AND late_since IS NULL"),
        partial_index("agents_in_trouble", "user_id", IN_TROUBLE),
        partial_index("agents_muted", "user_id, muted_until", IS_MUTED),
    )

    user_id: Mapped[str] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    description: Mapped[str]
    created_at: Mapped[str] = mapped_column(Timestamp)
    # JSON text, returned as it was stored.
    input_schema: Mapped[str] = mapped_column(server_default=INPUT_SCHEMA)
    annotations: Mapped[str] = mapped_column(server_default=ANNOTATIONS)
    # Whether the agent is an MCP tool. Null means that the agent is a tool if a worker asked for
    # its tasks in the last 30 days. `tool_since` is null if the agent has been a tool since
    # `created_at`.
    tool: Mapped[bool | None]
    tool_since: Mapped[str | None] = mapped_column(Timestamp)
    # The state, `ok` or `broken`, after the last task that ended; the time when this state began;
    # and the number of tasks that failed in a row.
    state: Mapped[str | None]
    state_since: Mapped[str | None] = mapped_column(Timestamp)
    failures: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # The IDs of the hooks that were notified that the agent is broken, as a JSON array.
    told_hooks: Mapped[str] = mapped_column(server_default="[]")
    # When a worker last asked for a task, to the minute.
    worker_seen_at: Mapped[str | None] = mapped_column(Timestamp)
    # The expected runs as JSON text; when the next run is due; when the agent becomes late if this
    # run does not start; and when the agent became late.
    expect: Mapped[str | None]
    due_at: Mapped[str | None] = mapped_column(Timestamp)
    late_at: Mapped[str | None] = mapped_column(Timestamp)
    late_since: Mapped[str | None] = mapped_column(Timestamp)
    # When the mute ends and when it began, and the name of the key that muted the agent. All three
    # are null if the agent is not muted.
    muted_until: Mapped[str | None] = mapped_column(Timestamp)
    muted_at: Mapped[str | None] = mapped_column(Timestamp)
    muted_by: Mapped[str | None]


class ApiKey(Model):
    """An API key of a user or of one of the user's agents; only a digest of it is stored."""

    __tablename__ = "api_keys"
    __table_args__ = (
        # Neither database checks this constraint if `agent_id` is null.
        ForeignKeyConstraint(
            ["user_id", "agent_id"], [Agent.user_id, Agent.id], ondelete="CASCADE"
        ),
        Index(None, "user_id", "agent_id"),
        partial_index("api_keys_login", "name", "login AND revoked_at IS NULL", unique=True),
    )

    id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    agent_id: Mapped[str | None]
    access: Mapped[str] = mapped_column(server_default=terms.FULL)
    # A login key has no secret text. It signs a person in if the proxy sends the name of the key as
    # the person's user name.
    login: Mapped[bool] = mapped_column(server_default=false())
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str]
    created_at: Mapped[str] = mapped_column(Timestamp)
    expires_at: Mapped[str | None] = mapped_column(Timestamp)
    last_used_at: Mapped[str | None] = mapped_column(Timestamp)
    revoked_at: Mapped[str | None] = mapped_column(Timestamp)


class SignInLink(Model):
    """A single-use link that signs a person in with a key; only a digest of it is stored."""

    __tablename__ = "sign_in_links"

    id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    key_id: Mapped[str] = mapped_column(ForeignKey(ApiKey.id, ondelete="CASCADE"), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[str] = mapped_column(Timestamp)
    expires_at: Mapped[str] = mapped_column(Timestamp)


def _json_object(column: str) -> tuple[CheckConstraint, CheckConstraint]:
    """Constraints that require a JSON object in the column, in the SQL of each database."""
    sqlite = CheckConstraint(
        f"CASE WHEN json_valid({column}) THEN json_type({column}) = 'object' ELSE 0 END", column
    )
    postgresql = CheckConstraint(f"json_typeof({column}::json) = 'object'", column)
    return sqlite.ddl_if(dialect="sqlite"), postgresql.ddl_if(dialect="postgresql")


# Tasks that can time out: with the default timeout, and with their own timeout.
CLAIMED = text("status = 'running' AND claimed_at IS NOT NULL AND timeout IS NULL")
CLAIMED_WITH_TIMEOUT = text("status = 'running' AND claimed_at IS NOT NULL AND timeout > 0")
WITH_OLD_LOG = text("finished_at IS NOT NULL AND first_log <= log_count")
IS_ASKING = text("questions <> '[]'")
IS_CLAIMED = text("status = 'running' AND claimed_at IS NOT NULL")
IS_HANGING = text("hanging_since IS NOT NULL")


class Task(Model):
    """An execution of an agent, with its results; the lines of its log are in LogChunk."""

    __tablename__ = "tasks"
    __table_args__ = (
        ForeignKeyConstraint(["user_id", "agent_id"], [Agent.user_id, Agent.id]),
        CheckConstraint(_one_of("status", *terms.STATUSES), "status"),
        CheckConstraint(_one_of("error_type", *terms.ERROR_TYPES), "error_type"),
        CheckConstraint("(status = 'error') = (error_type IS NOT NULL)", "error"),
        CheckConstraint("(error_type IS NULL) = (error_message IS NULL)", "error_message"),
        CheckConstraint("(status = 'running') = (finished_at IS NULL)", "finished"),
        *_json_object("input"),
        *_json_object("output"),
        *_json_object("labels"),
        CheckConstraint("first_log BETWEEN 1 AND log_count + 1", "first_log"),
        CheckConstraint("(idempotency_key IS NULL) = (idempotency_digest IS NULL)", "idempotency"),
        partial_index(
            "tasks_idempotency_key",
            "user_id, idempotency_key",
            "idempotency_key IS NOT NULL",
            unique=True,
        ),
        partial_index(
            "tasks_claim_key", "user_id, agent_id, claim_key", "claim_key IS NOT NULL", unique=True
        ),
        # For the list of tasks and its filters. A list with the newest task first reads the index
        # backwards.
        Index("tasks_by_creation", "user_id", "created_at", "id"),
        Index("tasks_by_agent", "user_id", "agent_id", "created_at", "id"),
        Index("tasks_by_status", "user_id", "status", "created_at", "id"),
        Index("tasks_by_end", "user_id", "finished_at", "id"),
        partial_index(
            "tasks_by_error", "user_id, error_type, created_at, id", "error_type IS NOT NULL"
        ),
        # To find the children and the reruns of a task, for example when the task is deleted.
        partial_index("tasks_by_parent", "parent_id, created_at, id", "parent_id IS NOT NULL"),
        partial_index("tasks_by_rerun", "rerun_of, created_at, id", "rerun_of IS NOT NULL"),
        # To compute the health of an agent.
        partial_index(
            "tasks_by_agent_end", "user_id, agent_id, finished_at", "finished_at IS NOT NULL"
        ),
        partial_index(
            "tasks_unclaimed",
            "user_id, agent_id, created_at, id",
            "status = 'running' AND claimed_at IS NULL",
        ),
        # To find late agents, and agents without a worker.
        partial_index("tasks_claimed_by_agent", "user_id, agent_id, claimed_at", IS_CLAIMED),
        # To find tasks that hang, and tasks whose next check for a hang is due.
        partial_index("tasks_hanging", "user_id, created_at, id", IS_HANGING),
        partial_index(
            "tasks_to_check", "hang_check_at", f"hang_check_at IS NOT NULL AND {IS_CLAIMED}"
        ),
        partial_index("tasks_asking", "user_id, created_at, id", IS_ASKING),
        # To find tasks that timed out, in the order of their last heartbeat or of their deadline.
        partial_index("tasks_claimed", "last_heartbeat_at", CLAIMED),
        partial_index("tasks_claimed_with_timeout", "heartbeat_deadline", CLAIMED_WITH_TIMEOUT),
        # For log retention: tasks with log lines, in the order in which the tasks ended.
        partial_index("tasks_with_old_log", "finished_at", WITH_OLD_LOG),
    )

    id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    agent_id: Mapped[str]
    name: Mapped[str]
    # The case-folded name, since neither database can fold the case of all scripts.
    name_folded: Mapped[str]
    status: Mapped[str]
    error_type: Mapped[str | None]
    error_message: Mapped[str | None]
    # The names of the keys that started and ended the task.
    started_by: Mapped[str | None]
    ended_by: Mapped[str | None]
    # JSON text, returned as it was stored.
    input: Mapped[str]
    output: Mapped[str]
    labels: Mapped[str] = mapped_column(server_default="{}")
    # A JSON number as text, which both databases return unchanged.
    progress: Mapped[str | None]
    note: Mapped[str | None]
    # The duration of the work in seconds, as the agent measured it; a JSON number as text.
    seconds: Mapped[str | None]
    # The open questions as a JSON array, oldest first, copied here so that a read of the task needs
    # no other table.
    questions: Mapped[str] = mapped_column(server_default="[]")
    # These two columns are not foreign keys, since SQLite would have to rebuild the table to add
    # them. The code that deletes a task sets all references to the task to null.
    parent_id: Mapped[str | None] = mapped_column(Identifier)
    rerun_of: Mapped[str | None] = mapped_column(Identifier)
    callback_url: Mapped[str | None]
    timeout: Mapped[int | None]
    created_at: Mapped[str] = mapped_column(Timestamp)
    updated_at: Mapped[str] = mapped_column(Timestamp)
    claimed_at: Mapped[str | None] = mapped_column(Timestamp)
    last_heartbeat_at: Mapped[str] = mapped_column(Timestamp)
    # When the task will time out, unless its agent sends something earlier.
    heartbeat_deadline: Mapped[str | None] = mapped_column(Timestamp)
    # When the task began to hang, and the reason.
    hanging_since: Mapped[str | None] = mapped_column(Timestamp)
    hanging_reason: Mapped[str | None]
    # When maintenance next checks whether the claimed task hangs. For a task that hangs, the value
    # is `hanging_since` if a new log line would end the hang, and null otherwise. A new question,
    # or a change of the agent's `expect`, makes a check due immediately.
    hang_check_at: Mapped[str | None] = mapped_column(Timestamp)
    finished_at: Mapped[str | None] = mapped_column(Timestamp)
    first_log: Mapped[int] = mapped_column(BigInteger)
    log_count: Mapped[int] = mapped_column(BigInteger)
    # The size in UTF-8 bytes of all appended lines, including a line feed for each line.
    log_bytes: Mapped[int] = mapped_column(BigInteger)
    # How many lines the default writer has sent; LogWriter counts the lines of other writers.
    default_writer_seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # Incremented by every change that a reader can see.
    version: Mapped[int] = mapped_column(BigInteger)
    idempotency_key: Mapped[str | None]
    idempotency_digest: Mapped[str | None] = mapped_column(String(64))
    # The idempotency key of the claim: a repeated claim with this key returns this task.
    claim_key: Mapped[str | None]


class TaskLabel(Model):
    """A label of a task as `key:value`; used to list the tasks with this label."""

    __tablename__ = "task_labels"
    __table_args__ = (Index("task_labels_by_label", "user_id", "label", "task_id"),)

    task_id: Mapped[str] = mapped_column(ForeignKey(Task.id, ondelete="CASCADE"), primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    # The task's user, copied here for the index.
    user_id: Mapped[str] = mapped_column(Identifier)


class Link(Model):
    """A link with which anyone can view a task; only a digest of it is stored."""

    __tablename__ = "links"

    id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey(Task.id, ondelete="CASCADE"), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[str] = mapped_column(Timestamp)
    expires_at: Mapped[str] = mapped_column(Timestamp)


class Question(Model):
    """A question that an agent asks a person; open questions are also in `Task.questions`."""

    __tablename__ = "questions"
    __table_args__ = (
        CheckConstraint(_one_of("state", *terms.QUESTION_STATES), "state"),
        CheckConstraint("(state = 'answered') = (answer IS NOT NULL)", "answer"),
        Index(None, "task_id", "asked_at", "id"),
        partial_index("questions_open", "task_id, asked_at, id", "state = 'open'"),
        partial_index(
            "questions_expiring", "expires_at", "state = 'open' AND expires_at IS NOT NULL"
        ),
        partial_index(
            "questions_idempotency_key",
            "task_id, idempotency_key",
            "idempotency_key IS NOT NULL",
            unique=True,
        ),
    )

    id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey(Task.id, ondelete="CASCADE"))
    message: Mapped[str]
    # The schema and the answer are JSON text, returned as it was stored.
    schema: Mapped[str]
    answer: Mapped[str | None]
    # The name of the key that answered or declined the question.
    answered_by: Mapped[str | None]
    state: Mapped[str]
    asked_at: Mapped[str] = mapped_column(Timestamp)
    expires_at: Mapped[str | None] = mapped_column(Timestamp)
    idempotency_key: Mapped[str | None]
    idempotency_digest: Mapped[str | None] = mapped_column(String(64))


class Log(Model):
    """The log of a task; after the task is deleted, the sweep deletes the lines in batches."""

    __tablename__ = "logs"

    id: Mapped[int] = mapped_column(RowNumber, Identity(), primary_key=True)
    # Deleting a task sets this to NULL, which is fast even for a million lines; the sweep
    # removes the lines later.
    task_id: Mapped[str | None] = mapped_column(
        ForeignKey(Task.id, ondelete="SET NULL"), unique=True
    )
    dropped_at: Mapped[str | None] = mapped_column(Timestamp, index=True)


class LogChunk(Model):
    """Lines of a log that arrived together; `last` is the number of the last of `count` lines."""

    __tablename__ = "log_chunks"
    __table_args__ = (CheckConstraint("count BETWEEN 1 AND last", "count"),)

    log_id: Mapped[int] = mapped_column(RowNumber, ForeignKey(Log.id), primary_key=True)
    last: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    count: Mapped[int] = mapped_column(Integer)
    # The lines, joined with line feeds; a line itself contains no line feed.
    text: Mapped[str] = mapped_column(Text)
    # The time of the first line in milliseconds since 1970, and the times of later lines in the
    # format of `clock.encode`. Both are null for lines that were stored without times.
    at: Mapped[int | None] = mapped_column(BigInteger)
    times: Mapped[str | None] = mapped_column(Text)


class LogWriter(Model):
    """The number of lines that a named writer has sent to a task's log."""

    __tablename__ = "log_writers"

    task_id: Mapped[str] = mapped_column(ForeignKey(Task.id, ondelete="CASCADE"), primary_key=True)
    writer: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)


class EventStream(Model):
    """The position of a user's last event; the row is created with the user's first hook."""

    # Each transaction that records an event locks the user's row, so that positions are in the
    # order of commits.
    __tablename__ = "event_streams"

    user_id: Mapped[str] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger)


class Event(Model):
    """An event of which hooks are notified; it is stored for seven days."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("user_id", "position"),)

    id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str]
    at: Mapped[str] = mapped_column(Timestamp, index=True)
    agent_id: Mapped[str]
    task_id: Mapped[str | None] = mapped_column(ForeignKey(Task.id, ondelete="CASCADE"), index=True)
    # Not a foreign key, since a question is deleted only with its task.
    question_id: Mapped[str | None] = mapped_column(Identifier)
    # The details of the event at the time when it happened, as a JSON object.
    details: Mapped[str] = mapped_column(server_default="{}")


class Hook(Model):
    """An address that is notified of events of a user's agents."""

    __tablename__ = "hooks"
    __table_args__ = (
        CheckConstraint(_one_of("state", *terms.HOOK_STATES), "state"),
        Index(None, "user_id", "created_at", "id"),
        partial_index("hooks_due", "next_attempt_at", "next_attempt_at IS NOT NULL"),
    )

    id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    name: Mapped[str]
    target: Mapped[str]
    format: Mapped[str]
    # The names of the events as a JSON array.
    events: Mapped[str]
    agent_id: Mapped[str | None]
    # If set, the hook is notified only of events of tasks with this label (`key:value`).
    label: Mapped[str | None]
    token: Mapped[str | None]
    answer_links: Mapped[bool]
    # The number of failures in a row after which the hook is notified that an agent is broken.
    after: Mapped[int] = mapped_column(Integer, server_default="1")
    created_at: Mapped[str] = mapped_column(Timestamp)
    state: Mapped[str]
    # The reason why the hook is off.
    reason: Mapped[str | None]
    # How many deliveries in a row have failed permanently.
    failures: Mapped[int] = mapped_column(Integer, server_default="0")
    last_delivered_at: Mapped[str | None] = mapped_column(Timestamp)
    # Since the last successful delivery: the number of failed attempts, the time of the first one,
    # and the error of the last one.
    attempt_count: Mapped[int] = mapped_column(Integer, server_default="0")
    failed_since: Mapped[str | None] = mapped_column(Timestamp)
    last_error: Mapped[str | None]
    # If the format is for people: when the next message is due; null if no delivery is pending. If
    # the format is for programs: when the hook was turned on; null once maintenance has made all
    # pending deliveries due.
    next_attempt_at: Mapped[str | None] = mapped_column(Timestamp)
    # If the format is for people: the end of the pause after a message. If the format is for
    # programs: when the pending deliveries expire if the hook remains off.
    quiet_until: Mapped[str | None] = mapped_column(Timestamp)
    # When the hook was deleted. Maintenance then removes its deliveries in batches, and finally the
    # hook.
    deleted_at: Mapped[str | None] = mapped_column(Timestamp)


class HookTest(Model):
    """A test of a hook, for the limit of tests per minute; stored even if the hook is deleted."""

    __tablename__ = "hook_tests"
    __table_args__ = (Index(None, "user_id", "at"),)

    id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    # Not a foreign key, since the hook may be deleted.
    hook_id: Mapped[str] = mapped_column(Identifier)
    at: Mapped[str] = mapped_column(Timestamp)


class Delivery(Model):
    """A delivery to a callback URL or a hook; its ID is the `webhook-id` of every attempt."""

    __tablename__ = "deliveries"
    __table_args__ = (
        CheckConstraint(_one_of("state", *terms.DELIVERY_STATES), "state"),
        CheckConstraint("(state = 'pending') = (next_attempt_at IS NOT NULL)", "next_attempt"),
        CheckConstraint("(lease IS NULL) = (leased_until IS NULL)", "lease"),
        CheckConstraint(
            "(hook_id IS NULL) = (event_id IS NULL)"
            " AND (hook_id IS NOT NULL OR task_id IS NOT NULL)",
            "hook",
        ),
        Index(None, "task_id", "created_at"),
        partial_index("deliveries_of_hook", "hook_id, created_at, id", "hook_id IS NOT NULL"),
        partial_index(
            "deliveries_due_of_hook",
            "hook_id, next_attempt_at",
            "state = 'pending' AND hook_id IS NOT NULL",
        ),
        partial_index("deliveries_of_event", "event_id", "hook_id IS NOT NULL"),
        partial_index("deliveries_due", "next_attempt_at", "state = 'pending'"),
        # To find the due deliveries of one user, since users take turns.
        partial_index("deliveries_due_of_user", "user_id, next_attempt_at", "state = 'pending'"),
        partial_index("deliveries_leased", "leased_until", "leased_until IS NOT NULL"),
        partial_index("deliveries_in_vain", "state", "state IN ('failed', 'cancelled')"),
        # To list the tasks whose webhook failed, and to find the most recent failures.
        partial_index("deliveries_failed", "user_id, created_at, task_id", "state = 'failed'"),
    )

    id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    # Null for the event of a late agent, which has no task.
    task_id: Mapped[str | None] = mapped_column(ForeignKey(Task.id, ondelete="CASCADE"))
    # The hook, and the event of which it is notified; both are null for a callback.
    hook_id: Mapped[str | None] = mapped_column(ForeignKey(Hook.id, ondelete="CASCADE"))
    event_id: Mapped[str | None] = mapped_column(ForeignKey(Event.id, ondelete="CASCADE"))
    # The task's user, copied here for the index.
    user_id: Mapped[str] = mapped_column(Identifier)
    callback_url: Mapped[str]
    # The host and port of the URL, stored so that a slow host does not delay deliveries to other
    # hosts.
    host: Mapped[str]
    state: Mapped[str]
    created_at: Mapped[str] = mapped_column(Timestamp)
    # The number of attempts since the delivery was created or last redelivered.
    attempt_count: Mapped[int] = mapped_column(Integer)
    next_attempt_at: Mapped[str | None] = mapped_column(Timestamp)
    # Until `leased_until`, only the holder of `lease` may post the delivery.
    lease: Mapped[str | None] = mapped_column(Identifier)
    leased_until: Mapped[str | None] = mapped_column(Timestamp)


class Attempt(Model):
    """An attempt to send a delivery, with a message that describes the outcome."""

    __tablename__ = "attempts"
    __table_args__ = (Index(None, "delivery_id", "id"),)

    id: Mapped[int] = mapped_column(RowNumber, Identity(), primary_key=True)
    delivery_id: Mapped[str] = mapped_column(ForeignKey(Delivery.id, ondelete="CASCADE"))
    at: Mapped[str] = mapped_column(Timestamp)
    duration_ms: Mapped[int] = mapped_column(Integer)
    status_code: Mapped[int | None] = mapped_column(Integer)
    message: Mapped[str]
    # The start of the body of the receiver's response.
    answer: Mapped[str | None]
    # The text of a message for people, without links; null for a webhook.
    text: Mapped[str | None]


class ServiceHeartbeat(Model):
    """The latest uninterrupted period in which agents could reach the service; at most one row."""

    __tablename__ = "service_heartbeat"
    __table_args__ = (CheckConstraint("id = 1", "id"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    since: Mapped[str] = mapped_column(Timestamp)
    until: Mapped[str] = mapped_column(Timestamp)


# Called before the service forks, so that its worker processes share the memory of the mappers.
configure_mappers()
