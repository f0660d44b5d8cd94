"""The application as people know it from Flask: its factory, its hooks and its extensions."""

from flask import Flask

from taskservice.config import Config
from taskservice.database import engine, migrations
from tests.support.marks import one_database


@one_database
def test_database_keeps_the_teardowns_of_other_extensions(config: Config) -> None:
    app = Flask(__name__)
    ended = []
    app.teardown_appcontext(lambda error: ended.append(error))
    migrations.upgrade(config.DATABASE_URL)
    engine.init_app(app, config.DATABASE_URL, config.THREADS)
    ended.clear()
    with app.app_context():
        pass
    assert ended == [None]
    engine.dispose(app)
