"""Flask, Flask-SQLAlchemy and marshmallow, and nothing else: what the packages take."""

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from marshmallow import Schema, fields
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The base of the table."""


db = SQLAlchemy(model_class=Base)


class Task(Base):
    __tablename__ = "tasks"

    id: Mapped[str] = mapped_column(primary_key=True)


class TaskSchema(Schema):
    id = fields.String()


task_schema = TaskSchema()


def create_app() -> Flask:
    app = Flask(__name__, static_folder=None)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    db.init_app(app)

    @app.get("/api/v1/task/<task_id>")
    def get(task_id: str) -> dict[str, str]:
        task: dict[str, str] = task_schema.dump(Task(id=task_id))
        return task

    return app
