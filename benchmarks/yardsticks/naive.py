"""The service as one writes it first: the ORM, marshmallow and `jsonify`."""

import hashlib
import os
from typing import Any

from flask import Flask, abort, g, jsonify, request
from flask.typing import ResponseReturnValue
from flask_sqlalchemy import SQLAlchemy
from marshmallow import Schema, fields
from sqlalchemy import JSON, ForeignKey, Index, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """The base of the tables."""


db = SQLAlchemy(model_class=Base)


class User(Base):
    __tablename__ = "users"

    id: Mapped[str] = mapped_column(primary_key=True)


class ApiKey(Base):
    __tablename__ = "api_keys"

    digest: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id))
    revoked_at: Mapped[str | None]
    user: Mapped[User] = relationship()


class Task(Base):
    __tablename__ = "tasks"
    __table_args__ = (Index("tasks_by_creation", "user_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id))
    agent_id: Mapped[str]
    name: Mapped[str]
    status: Mapped[str]
    created_at: Mapped[str]
    updated_at: Mapped[str]
    claimed_at: Mapped[str | None]
    finished_at: Mapped[str | None]
    input: Mapped[Any] = mapped_column(JSON)
    output: Mapped[Any] = mapped_column(JSON)
    logs: Mapped[Any] = mapped_column(JSON)
    error: Mapped[Any] = mapped_column(JSON)
    callback: Mapped[str | None]


class TaskSchema(Schema):
    id = fields.String()
    name = fields.String()
    agentId = fields.String(attribute="agent_id")
    userId = fields.String(attribute="user_id")
    createdAt = fields.String(attribute="created_at")
    updatedAt = fields.String(attribute="updated_at")
    claimedAt = fields.String(attribute="claimed_at")
    finishedAt = fields.String(attribute="finished_at")
    input = fields.Dict()
    output = fields.Dict()
    logs = fields.List(fields.String())
    status = fields.String()
    error = fields.Dict()
    callback = fields.String()


task_schema = TaskSchema()
tasks_schema = TaskSchema(many=True)


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def create_app(database: str = "") -> Flask:
    app = Flask(__name__, static_folder=None)
    path = database or os.environ["YARDSTICK_DATABASE"]
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{path}"
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 24}
    db.init_app(app)
    with app.app_context():
        event.listen(db.engine, "connect", _set_pragmas)
        db.create_all()

    @app.before_request
    def authenticate() -> None:
        digest = hashlib.sha256(request.headers.get("apikey", "").encode()).hexdigest()
        key = db.session.get(ApiKey, digest)
        if key is None or key.revoked_at is not None:
            abort(401)
        g.user = key.user

    @app.get("/api/v1/task/<task_id>")
    def get(task_id: str) -> ResponseReturnValue:
        query = select(Task).where(Task.id == task_id, Task.user_id == g.user.id)
        return jsonify(task_schema.dump(db.one_or_404(query)))

    @app.get("/api/v1/task")
    def list_all() -> ResponseReturnValue:
        tasks = select(Task).where(Task.user_id == g.user.id)
        tasks = tasks.order_by(Task.created_at.desc(), Task.id.desc())
        tasks = tasks.limit(request.args.get("limit", type=int))
        return jsonify(tasks_schema.dump(db.session.scalars(tasks)))

    return app


def store(
    database: str, keys: dict[str, str], tasks: list[dict[str, Any]], copies: int = 1
) -> None:
    """Make the database with keys, digest -> ID of the user, and each task `copies` times."""
    with create_app(database).app_context():
        db.session.execute(db.insert(User), [{"id": user} for user in set(keys.values())])
        rows = [{"digest": digest, "user_id": user} for digest, user in keys.items()]
        db.session.execute(db.insert(ApiKey), rows)
        columns = {name: field.attribute or name for name, field in task_schema.fields.items()}
        originals = [{columns[name]: task[name] for name in columns} for task in tasks]
        for number in range(copies):
            db.session.execute(
                db.insert(Task),
                [row | {"id": f"{row['id'][:28]}{number:08x}"} if number else row
                 for row in originals],
            )  # fmt: skip
        db.session.commit()
        db.engine.dispose()
