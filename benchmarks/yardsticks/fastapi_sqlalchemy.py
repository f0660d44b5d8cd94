"""The service as one writes it first with FastAPI: SQLAlchemy's ORM and pydantic models."""

# FastAPI is installed for `benchmarks.peers` alone, in another environment than this code's own.
# mypy: disable-error-code="import-not-found, untyped-decorator, misc"

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict
from sqlalchemy import JSON, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    """The base of the tables."""


class ApiKey(Base):
    __tablename__ = "api_keys"

    digest: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str]


class Task(Base):
    __tablename__ = "tasks"

    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(index=True)
    agent_id: Mapped[str]
    name: Mapped[str]
    status: Mapped[str]
    created_at: Mapped[datetime]
    input: Mapped[Any] = mapped_column(JSON)
    output: Mapped[Any] = mapped_column(JSON)
    logs: Mapped[Any] = mapped_column(JSON)


class NewTask(BaseModel):
    agent_id: str
    name: str
    input: dict[str, Any]
    logs: list[str]


class TaskAnswer(NewTask):
    model_config = ConfigDict(from_attributes=True)

    id: str
    user_id: str
    status: str
    created_at: datetime
    output: dict[str, Any]


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


engine = create_engine(
    f"sqlite:///{os.environ['YARDSTICK_DATABASE']}",
    connect_args={"check_same_thread": False},
    pool_size=40,
)
event.listen(engine, "connect", _set_pragmas)
Base.metadata.create_all(engine)
with Session(engine) as first:
    digest = hashlib.sha256(os.environ["YARDSTICK_KEY"].encode()).hexdigest()
    first.merge(ApiKey(digest=digest, user_id="1"))
    first.commit()

app = FastAPI()


def session() -> Iterator[Session]:
    with Session(engine) as opened:
        yield opened


SessionOfRequest = Annotated[Session, Depends(session)]


def user(db: SessionOfRequest, apikey: Annotated[str, Header()]) -> str:
    key = db.get(ApiKey, hashlib.sha256(apikey.encode()).hexdigest())
    if key is None:
        raise HTTPException(401)
    return key.user_id


UserOfRequest = Annotated[str, Depends(user)]


@app.get("/task/{task_id}", response_model=TaskAnswer)
def get(task_id: str, db: SessionOfRequest, user_id: UserOfRequest) -> Task:
    task = db.get(Task, task_id)
    if task is None or task.user_id != user_id:
        raise HTTPException(404)
    return task


@app.post("/task", status_code=201, response_model=TaskAnswer)
def start(body: NewTask, db: SessionOfRequest, user_id: UserOfRequest) -> Task:
    task = Task(
        id=str(uuid4()), user_id=user_id, status="running", output={},
        created_at=datetime.now(UTC), **body.model_dump(),
    )  # fmt: skip
    db.add(task)
    db.commit()
    return task
