"""Settings: defaults, checks, and what is said about a wrong one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskservice.config import Config, ConfigError, unknown_names
from tests.support.service import environment


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
        ("SECRET_KEY", "k" * 31),
        ("SECRET_KEY", "\udcff" * 40),
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


def test_processes_that_start_at_once_make_one_secret_key_and_keep_it_private(
    tmp_path: Path,
) -> None:
    program = "from taskservice.config import Config; print(Config.from_environment().SECRET_KEY)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment(tmp_path / "new", SECRET_KEY=""),
            stdout=subprocess.PIPE, text=True,
        )
        for _ in range(6)
    ]  # fmt: skip
    keys = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(keys) == 1
    assert len(keys.pop()) >= 32
    (path,) = (tmp_path / "new").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_secret_key_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new"
    synced: list[tuple[str, list[bytes]]] = []

    def look(descriptor: int) -> None:
        """What is synced, and what is in the folder by then under the key's name."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        there = [file.read_bytes() for file in folder.glob("secret_key")]
        synced.append((path.name.partition(".")[0], there))

    monkeypatch.setattr(os, "fsync", look)
    key = f"{Config.from_environment({'TASKSERVICE_DATA': str(folder)}).SECRET_KEY}\n".encode()
    assert synced == [(tmp_path.name, []), ("secret_key", []), ("new", [key])]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"x", b"k" * 31 + b"\n", b"\xff" * 40],
    ids=("empty", "an empty line", "a letter", "31 bytes", "no text"),
)
def test_kept_secret_key_that_cannot_protect_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret_key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="must be text in UTF-8 of at least 32 bytes") as caught:
        Config.from_environment({"TASKSERVICE_DATA": str(tmp_path)})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_misspelt_names_are_noticed() -> None:
    environ = {"TASKSERVICE_BINDD": "x", "TASKSERVICE_APIKEY": "x", "TASKSERVICE_DATA": "x"}
    assert unknown_names({**environ, "PATH": "x"}) == ["TASKSERVICE_BINDD"]
