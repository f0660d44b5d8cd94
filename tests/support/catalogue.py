"""The catalogue: the faults and bad inputs that a run of the tests tried, and what happened."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

CLASSES = (
    "HTTP", "JSON", "access", "callback", "storage", "process", "upgrade", "agent's side",
)  # fmt: skip
DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
# Below the root; one file for each file of tests, kept from run to run.
FOLDER = Path("build", "catalogue")

Function = Callable[..., Any]


def fault(kind: str, text: str, promised: str, answers: bool = True) -> Callable[[Function], Any]:
    """Mark a test whose fault is a row of the catalogue.

    With `{case}` in the text each subtest is a row; `{name}` is the value of a parameter, and
    `{id}` what pytest calls this case. Without them all cases are one row. `answers` says
    whether the errors that clients and commands ended with count as what happened.
    """
    assert kind in CLASSES, kind
    return pytest.mark.fault(kind, text, promised, answers)


# --- what happens --------------------------------------------------------------------------


@dataclass
class Observation:
    """What a test, or one of its cases, has seen."""

    answers: set[str] = field(default_factory=set)
    texts: dict[str, None] = field(default_factory=dict)
    cases: dict[str, "Observation"] = field(default_factory=dict)

    def seen(self, with_answers: bool) -> list[str]:
        """Each thing that happened, without repetitions; the order of answers is no fact."""
        observations = list(self._all())
        answers = {answer for each in observations for answer in each.answers}
        texts = [text for each in observations for text in each.texts]
        return [*(sorted(answers) if with_answers else ()), *dict.fromkeys(texts)]

    def count(self) -> int:
        return sum(each.count() for each in self.cases.values()) or 1

    def _all(self) -> Iterator["Observation"]:
        yield self
        for each in self.cases.values():
            yield from each._all()


_current = Observation()


def happened(text: str) -> None:
    """Note what a test saw, below the assertion that shows it.

    A text that differs from run to run would change the document each time.
    """
    _current.texts[text] = None


def failed(text: str) -> None:
    """Note how a request or a command failed."""
    _current.answers.add(text)


def answered(status: int, code: object = None) -> None:
    """Note an answer that is an error."""
    if status >= 400:
        failed(f"{status} `{code}`" if code else str(status))


def answered_with(status: int, data: bytes) -> None:
    """Note an answer with this body, which is a problem if the service made it."""
    try:
        problem = json.loads(data) if status >= 400 and data else {}
    except ValueError:
        problem = {}
    answered(status, problem.get("code") if isinstance(problem, dict) else None)


def answered_raw(data: bytes) -> None:
    """Note the first answer in what came over a socket."""
    head, _, body = data.partition(b"\r\n\r\n")
    if found := re.match(rb"HTTP/1\.\d (\d{3})", head):
        answered_with(int(found[1]), body)


class ObservedClient(FlaskClient):
    """Flask's client for tests, whose errors are noted."""

    def open(self, *args: Any, **options: Any) -> TestResponse:
        response = super().open(*args, **options)
        if response.status_code >= 400:
            answered_with(response.status_code, response.get_data())
        return response


def ended(code: int, stderr: str | bytes) -> None:
    """Note how a command failed: its exit code, and its last line on stderr."""
    text = stderr.decode(errors="replace") if isinstance(stderr, bytes) else stderr
    lines = text.splitlines()
    failed(f"exit code {code}: {steady(lines[-1])}" if lines else f"exit code {code}")


def steady(text: str) -> str:
    """A text without what differs from run to run, such as ids, ports and folders."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)
    text = re.sub(r"(127\.0\.0\.1|localhost|\[::1\]):\d+", r"\1", text)
    text = re.sub(r"\bport \d+", "port N", text)
    text = re.sub(r"\.[0-9a-f]{8}\.part\b", ".part", text)
    text = re.sub(r"\btest_\w*\d", "FOLDER", text)
    text = re.sub(r"\bpostgresql(\+psycopg)?://[^\s;'\"]+", "postgresql://...", text)
    text = re.sub(r"(: connection failed): .*", r"\1", text)
    # The phrases of statuses and the reasons of OpenSSL differ between the versions of Python.
    text = re.sub(r"( answered \d{3}) [A-Z][A-Za-z ]*", r"\1", text)
    text = re.sub(r"(certificate of \S+ is refused): .*", r"\1.", text)
    return re.sub(r"(?<![\w:/])(/[\w.-]+)+/([\w.-]+)", r"\2", text)


@contextmanager
def case(name: str) -> Iterator[None]:
    """What happens in the block is noted for this case."""
    global _current
    before = _current
    _current = before.cases.setdefault(name, Observation())
    try:
        yield
    finally:
        _current = before


@contextmanager
def _observing() -> Iterator[Observation]:
    global _current
    before, _current = _current, Observation()
    try:
        yield _current
    finally:
        _current = before


# --- rows ----------------------------------------------------------------------------------


@dataclass
class Row:
    """What one item of pytest, or one case of it, tells of a fault."""

    kind: str
    fault: str
    promised: str
    happened: list[str]
    database: str
    variant: str
    cases: int
    test: str


def _rows(item: pytest.Item, total: Observation) -> Iterator[Row]:
    for mark in item.iter_markers("fault"):
        kind, text, promised, with_answers = mark.args
        cases = total.cases if "{case}" in text else {"": total}
        for name, observation in cases.items():
            words = _parameters(item) | {"case": name}
            # What is noted outside of the cases holds for each of them.
            seen = list(dict.fromkeys([*observation.seen(with_answers), *total.texts]))
            assert seen, f"nothing was noted of the fault {text!r} {name!r}"
            yield Row(
                kind, text.format(**words), promised.format(**words), seen,
                _database(item), str(words["id"]), observation.count(), _test(item),
            )  # fmt: skip


def _parameters(item: pytest.Item) -> dict[str, object]:
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return {"id": ""}
    ids = [each for each in callspec._idlist if each not in DATABASES]
    params = {name: _shown(value) for name, value in callspec.params.items()}
    return {**params, "id": " ".join(ids).replace("-", " ")}


def _shown(value: object) -> str:
    """A value as text; a function by its name, in words."""
    return str(getattr(value, "__name__", value)).replace("_", " ")


def _database(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec else ()
    names = [DATABASES[each] for each in values if isinstance(each, str) and each in DATABASES]
    return names[0] if len(names) == 1 else ""


def _test(item: pytest.Item) -> str:
    path = item.path.relative_to(item.config.rootpath).as_posix()
    return f"{path}::{getattr(item, 'originalname', item.name)}"


class Catalogue:
    """A plugin of pytest: rows come with the reports of tests, and are kept when all is done."""

    def __init__(self, config: pytest.Config) -> None:
        self._is_controller = not hasattr(config, "workerinput")
        self._folder = config.rootpath / FOLDER
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        if item.get_closest_marker("fault") is None:
            return (yield)
        with _observing() as total:
            result = yield
        rows = [asdict(row) for row in _rows(item, total)]
        item.user_properties.append(("faults", rows))
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)
        elif report.when == "call":
            for name, rows in report.user_properties:
                if name == "faults":
                    self._rows[report.nodeid] = rows  # type: ignore[assignment]

    def pytest_sessionfinish(self) -> None:
        if self._is_controller:
            for file in {each.partition("::")[0] for each in self._rows.keys() | self._failed}:
                self._keep(file)

    def _keep(self, file: str) -> None:
        """Add the rows of a file of tests to those that earlier runs kept."""
        path = self._folder / f"{file.replace('/', '.')}.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        kept |= {each: rows for each, rows in self._rows.items() if each.startswith(f"{file}::")}
        kept = {each: rows for each, rows in kept.items() if each not in self._failed}
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(kept, indent=1))
        new.replace(path)


def kept_rows(root: Path) -> list[Row]:
    """The rows of all runs since the folder was removed."""
    files = sorted((root / FOLDER).glob("*.json"))
    return [
        Row(**row)
        for path in files
        for _, rows in sorted(json.loads(path.read_text()).items())
        for row in rows
    ]
