"""Settings: defaults, checks and error messages."""

import os
from dataclasses import fields
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from taskservice.config import Config, ConfigError, unknown_names
from taskservice.database import address


def test_defaults_are_as_the_contract_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config.from_environment({})
    assert tmp_path / "instance" == config.DATA
    assert f"sqlite:///{tmp_path}/instance/taskservice.db" == str(config.DATABASE_URL)
    assert (config.BIND, config.WORKERS, config.THREADS) == ("127.0.0.1:8000", 1, 16)
    assert (config.PROXY_HOPS, config.CALLBACK_TIMEOUT, config.TASK_TIMEOUT) == (0, 10, 86_400)
    assert (config.RETENTION_DAYS, config.LOG_RETENTION_DAYS) == (0, 0)
    assert config.MAX_BODY == 10 * 1024 * 1024
    assert (config.LOG_LEVEL, config.LOG_FORMAT) == ("info", "text")


# For a number in decimal digits, with no sign, space, exponent or unit.
ODD_NUMBERS = [
    "1e9", "1e1", "٣", "１６", "²", " 5 ", "5\n", "0x10", "1_0", "-1", "-16", "+5", "inf", "nan",
    ".", "5.", "1.5.0", "many", "10MB", "\udcff", str(10**400), "9" * 5_000,
]  # fmt: skip
WHOLE_NUMBERS = ["WORKERS", "THREADS", "WAITS", "PROXY_HOPS", "MAX_BODY"]
NUMBERS = ["CALLBACK_TIMEOUT", "TASK_TIMEOUT", "RETENTION_DAYS", "LOG_RETENTION_DAYS"]
WRONG = {
    **{name: [*ODD_NUMBERS, "1.5"] for name in WHOLE_NUMBERS},
    **dict.fromkeys(NUMBERS, ODD_NUMBERS),
    "BIND": [
        "8000", "127.0.0.1:http", "::1:8000", "[]:8000", ":::", ":8000", "localhost:70000",
        "localhost:99999", "localhost:-1", "localhost:²", "localhost:８０００", "[::1:8000",
        "::1]:8000", "[nonsense]:8000", "a" * 64 + ":8000", "a..b:8000", ".:8000", "\udcff:8000",
        "unix:", "unix://", "me@localhost:8000", "localhost:8000/path",
    ],
    "DATABASE_URL": [
        "mysql://localhost/x", "sqlite:///relative.db", "sqlite:////a?b/taskservice.db",
        "sqlite:////a%00b.db", "postgresql", "postgresql+psycopg", "postgresql://host:hidden/x", "postgresql://host:0/x",
        "postgresql://a:1,b:2:3/x", "postgresql://a,b,c/x?port=1,2", "postgresql://host/x?port=1,2",
        "postgresql://host:70000/x", "postgresql://host:٣/x", "postgresql://[::1/x",
        "postgresql://[]/x", "postgresql://[::1]hidden/x", "postgresql://me:hidden%00@host/x",
        "postgresql://me:hidden%zz@host/x", "postgresql://me:hidden@hidden@host/x",
        "postgresql://me:hidden/hidden@host/x",
        "postgresql://host/x?hidden=1", "postgresql://host/%ff", "postgresql://host/\udcff",
        "postgresql://a..b/x", "postgresql://" + "a" * 64 + "/x",
    ],
    "CALLBACK_ALLOWED": [
        "*", "10.0.0.0/99", "10.0.0.0/33", "*.lan.", "http://hooks", "exernal", "\udcff",
    ],
    "LOG_LEVEL": ["loud", "\udcff"],
    "LOG_FORMAT": ["xml"],
    "SECRET_KEY": ["short", "k" * 31, "\udcff" * 40],
    "PUBLIC_URL": [
        "tasks.example.org", "ftp://tasks.example.org", "https://", "https://hidden@tasks.example",
        "https://tasks.example/?hidden", "https://tasks.example/#hidden", "https://a b", "\udcff",
    ],
    "SMTP_URL": [
        "mail.example", "http://mail.example", "smtp://", "smtp://:25", "smtp://mail.example/hidden",
        "smtp://mail.example?hidden", "smtp://ann@mail.example", "smtp://ann:@mail.example",
        "smtp://:hidden@mail.example", "smtp://ann:hid@den@mail.example", "smtp://mail.example:0",
        "smtp://ann:hid/den@mail.example", "smtp://ann:hidden%0D@mail.example", "smtp://[::1",
        "smtp://ann:hidden%C3%BC@mail.example", "smtp://ann:hidden@mail.example:70000", "\udcff",
        "smtp://ann:hidden\udcff@mail.example", "smtp://a b", "smtp://mail.example\n",
    ],
    "MAIL_FROM": [
        "tasks", "tasks@", "@example.org", "a@example.org, b@example.org", "tasks@example.org\n",
        "Tasks <tasks>", "Tasks tasks@example.org", "tasks@bücher.example", "\udcff@example.org",
        "Tasks <tasks@example.org> <a@example.org>", "a@example.org, Tasks <tasks@example.org>",
        'Tasks "nightly" <tasks@example.org>', "\udcff <tasks@example.org>",
        "Tasks\r\nBcc: a@example.org <tasks@example.org>",
        "=?utf-8?q?a=0ABcc?= <tasks@example.org>",
    ],
}  # fmt: skip
TOO_SMALL_OR_LARGE = {
    "WORKERS": ["0", "65"], "THREADS": ["3", "257"], "PROXY_HOPS": ["11"], "MAX_BODY": ["1"],
    "WAITS": ["0", "1001"], "CALLBACK_TIMEOUT": ["0", "60"], "TASK_TIMEOUT": ["31536001"],
    "RETENTION_DAYS": ["36501"], "LOG_RETENTION_DAYS": ["36501"],
}  # fmt: skip


def test_wrong_value_is_one_line_that_names_the_setting(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for wrong in (WRONG, TOO_SMALL_OR_LARGE):
        for name, values in wrong.items():
            for value in values:
                with subtests.test(f"{name} {value[:40]!r}"):
                    line = refusal(tmp_path, name, value)
                    assert line.startswith(f"TASKSERVICE_{name}: ")
                    assert "\n" not in line
                    assert "hidden" not in line
                    assert len(line) < 200


def refusal(data: Path, name: str, value: str) -> str:
    settings = {"DATA": str(data), "SECRET_KEY": "k" * 32} | {name: value}
    with pytest.raises(ConfigError) as caught:
        Config.from_environment({f"TASKSERVICE_{name}": text for name, text in settings.items()})
    return str(caught.value)


def test_every_setting_with_a_number_is_in_these_tests() -> None:
    kinds = {setting.name: type(setting.default) for setting in fields(Config)}
    assert {name for name, kind in kinds.items() if kind in (int, float)} == {
        *WHOLE_NUMBERS, *NUMBERS
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://localhost/tasks", "postgresql://localhost/tasks"),
        ("postgresql+psycopg://localhost/tasks", "postgresql://localhost/tasks"),
        ("postgresql://me:hidden@[::1]:5433/tasks", "postgresql://me@[::1]:5433/tasks"),
        (
            "postgresql://me@a:1,b/tasks?target_session_attrs=any&password=hidden",
            "postgresql://me@a:1,b/tasks",
        ),
        ("postgresql://a,b/tasks?port=5&sslpassword=hidden", "postgresql://a:5,b:5/tasks"),
        ("postgresql:///tasks?host=/run/pg&user=a%40b", "postgresql://a%40b@%2Frun%2Fpg/tasks"),
        ("sqlite:////data/a%3Fb.db", "/data/a?b.db"),
        ("sqlite:////data/%FF.db", "/data/\udcff.db"),
    ],
)
def test_database_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert address.shown(address.parse(url)) == shown


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
    assert address.shown(make_url(config.DATABASE_URL)) == "postgresql://localhost/tasks"


def test_secret_key_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new"
    synced: list[tuple[str, list[bytes]]] = []

    def look(descriptor: int) -> None:
        """What is synced, and what is in the directory by then under the key's name."""
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


@pytest.mark.parametrize(
    ("bind", "public_url", "known"),
    [
        ("127.0.0.1:8000", "", "http://127.0.0.1:8000"),
        ("localhost:80", "", "http://localhost:80"),
        ("[::1]:8000", "", "http://[::1]:8000"),
        ("0.0.0.0:8000", "", ""),
        ("unix:/run/taskservice/socket", "", ""),
        ("10.1.2.3:8000", "https://tasks.example.org/jobs/", "https://tasks.example.org/jobs"),
    ],
)
def test_public_url_is_known_on_loopback(
    tmp_path: Path, bind: str, public_url: str, known: str
) -> None:
    settings = {"DATA": str(tmp_path), "BIND": bind, "PUBLIC_URL": public_url}
    environ = {f"TASKSERVICE_{name}": text for name, text in settings.items()}
    assert known == Config.from_environment(environ).PUBLIC_URL
    behind_proxy = Config.from_environment(environ | {"TASKSERVICE_PROXY_HOPS": "1"})
    assert (known if public_url else "") == behind_proxy.PUBLIC_URL
