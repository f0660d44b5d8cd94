"""Settings: defaults, checks, and what is said about a wrong one."""

import threading
from pathlib import Path

import pytest

from taskservice.config import Config, ConfigError, unknown_names


def test_defaults_are_those_of_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config.from_environment({})
    assert tmp_path / "instance" == config.DATA
    assert f"sqlite:///{tmp_path}/instance/taskservice.db" == str(config.DATABASE_URL)
    assert (config.BIND, config.WORKERS, config.THREADS) == ("127.0.0.1:8000", 1, 16)
    assert (config.PROXY_HOPS, config.CALLBACK_TIMEOUT, config.TASK_TIMEOUT) == (0, 10, 86_400)
    assert (config.RETENTION_DAYS, config.LOG_RETENTION_DAYS) == (0, 0)
    assert config.MAX_BODY == 10 * 1024 * 1024
    assert (config.LOG_LEVEL, config.LOG_FORMAT) == ("info", "text")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKERS", "0"),
        ("WORKERS", "many"),
        ("THREADS", "3"),
        ("THREADS", "-16"),
        ("THREADS", "１６"),
        ("PROXY_HOPS", "1.5"),
        ("BIND", "8000"),
        ("BIND", "127.0.0.1:http"),
        ("BIND", "::1:8000"),
        ("BIND", "localhost:70000"),
        ("DATABASE_URL", "mysql://localhost/x"),
        ("DATABASE_URL", "sqlite:///relative.db"),
        ("DATABASE_URL", "sqlite:////a?b/taskservice.db"),
        ("CALLBACK_ALLOWED", "*"),
        ("CALLBACK_ALLOWED", "10.0.0.0/99"),
        ("CALLBACK_TIMEOUT", "0"),
        ("CALLBACK_TIMEOUT", "60"),
        ("CALLBACK_TIMEOUT", "nan"),
        ("TASK_TIMEOUT", "-1"),
        ("RETENTION_DAYS", "a week"),
        ("LOG_RETENTION_DAYS", "inf"),
        ("MAX_BODY", "10MB"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("SECRET_KEY", "short"),
    ],
)
def test_wrong_value_is_one_line_that_names_the_setting(
    tmp_path: Path, name: str, value: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_environment({"TASKSERVICE_DATA": str(tmp_path), f"TASKSERVICE_{name}": value})
    assert str(caught.value).startswith(f"TASKSERVICE_{name}: ")
    assert "\n" not in str(caught.value)


def test_empty_value_is_as_unset(tmp_path: Path) -> None:
    config = Config.from_environment({"TASKSERVICE_DATA": str(tmp_path), "TASKSERVICE_BIND": ""})
    assert config.BIND == "127.0.0.1:8000"


def test_postgresql_needs_a_secret_key(tmp_path: Path) -> None:
    environ = {
        "TASKSERVICE_DATA": str(tmp_path),
        "TASKSERVICE_DATABASE_URL": "postgresql://localhost/tasks",
    }
    with pytest.raises(ConfigError, match="SECRET_KEY"):
        Config.from_environment(environ)
    config = Config.from_environment(environ | {"TASKSERVICE_SECRET_KEY": "k" * 32})
    assert config.DATABASE_URL == "postgresql+psycopg://localhost/tasks"


def test_secret_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    keys = set()

    def read() -> None:
        keys.add(Config.from_environment({"TASKSERVICE_DATA": str(tmp_path / "new")}).SECRET_KEY)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 1
    (path,) = (tmp_path / "new").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_misspelt_names_are_noticed() -> None:
    environ = {"TASKSERVICE_BINDD": "x", "TASKSERVICE_APIKEY": "x", "TASKSERVICE_DATA": "x"}
    assert unknown_names({**environ, "PATH": "x"}) == ["TASKSERVICE_BINDD"]
