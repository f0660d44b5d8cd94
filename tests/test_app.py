"""The application as people know it from Flask: its factory, its hooks and its extensions."""

import os
import sys
from pathlib import Path
from types import FrameType

import pytest
from flask import Flask, Response

import taskservice
from taskservice.config import Config
from taskservice.database import engine, migrations
from tests.support.api_client import ApiClient
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


@one_database
def test_request_to_the_api_passes_no_code_of_mcp_and_the_dashboard(alice: ApiClient) -> None:
    task = alice.start()
    passed = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            passed.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        response = alice.get(f"/task/{task['id']}")
    finally:
        sys.setprofile(None)
    assert response.status_code == 200
    package = Path(taskservice.__file__).parent
    assert str(package / "api" / "tasks.py") in passed
    folders = (f"{package / 'mcp'}{os.sep}", f"{package / 'dashboard'}{os.sep}")
    assert [path for path in passed if path.startswith(folders)] == []


def bug() -> Response:
    raise LookupError("a bug")


@one_database
@pytest.mark.parametrize("setting", ["TESTING", "DEBUG", "PROPAGATE_EXCEPTIONS"])
@pytest.mark.parametrize(
    ("endpoint", "path"), [("operations.live", "/livez"), ("dashboard.sign_in.enter", "/sign-in")]
)
def test_bug_reaches_the_debugger_and_tests(
    app: Flask, monkeypatch: pytest.MonkeyPatch, setting: str, endpoint: str, path: str
) -> None:
    monkeypatch.setitem(app.view_functions, endpoint, bug)
    assert app.test_client().get(path).status_code == 500
    app.config[setting] = True
    with pytest.raises(LookupError, match="a bug"):
        app.test_client().get(path)
    # What is not a bug is still a response.
    assert app.test_client().get("/api/v1/user").status_code == 401
    app.config["PROPAGATE_EXCEPTIONS"] = False
    assert app.test_client().get(path).status_code == 500
