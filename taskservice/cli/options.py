"""Options that several commands share: durations, text, ids, labels, JSON, and --json."""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from taskservice.quantities import typed, typed_seconds
from taskservice.terms import MAX_OBJECT

if TYPE_CHECKING:
    from taskservice.client import Client, Task

# How many of the newest tasks a shell knows.
COMPLETED_TASKS = 100


class Duration(click.ParamType[int]):
    """A number of seconds, or numbers with units, such as 90d or 1h30m; converted to seconds."""

    name = "time"

    def __init__(
        self, minimum: int = 0, maximum: int | None = None, *, needs_unit: bool = False
    ) -> None:
        """Both are in seconds. `needs_unit`: a number without a unit might be meant as days."""
        self._minimum, self._maximum, self._needs_unit = minimum, maximum, needs_unit

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        seconds = typed_seconds(value)
        if self._needs_unit and value.isdigit():
            self.fail(f"{value!r} needs a unit, such as {value}d", param, ctx)
        if seconds is None:
            seconds_example = "" if self._needs_unit else "90 (seconds), "
            problem = f"{value!r} must be a duration such as {seconds_example}5m, 1h30m or 90d"
            self.fail(problem, param, ctx)
        if seconds < self._minimum:
            self.fail(f"must be at least {typed(self._minimum)}", param, ctx)
        if self._maximum is not None and seconds > self._maximum:
            self.fail(f"must be at most {typed(self._maximum)}", param, ctx)
        return seconds


def time_before(seconds: int | None) -> str | None:
    """The time that was `seconds` ago; None for None, and before the first year."""
    if seconds is None:
        return None
    try:
        return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        return None


class Text(click.ParamType[str]):
    """Text that UTF-8 can encode, as storing and sending require; Python accepts any bytes."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail("must be text in UTF-8", param, ctx)
        return value


Values = Callable[["Client"], Iterable[tuple[str, str]]]


def _completions(values: Values, incomplete: str) -> list[CompletionItem]:
    """What a shell can complete, with a word about each; nothing if the service is unavailable."""
    # Imported here, since the server commands need no client.
    from taskservice.client import Client, TaskServiceError

    try:
        found = list(values(Client(patience=0)))
    except TaskServiceError:
        return []
    return [
        CompletionItem(value, help=word) for value, word in found if value.startswith(incomplete)
    ]


def _newest_tasks(client: "Client") -> Iterable["Task"]:
    fields = "id,name,status,error,labels"
    return islice(client.tasks(fields=fields, page=COMPLETED_TASKS), COMPLETED_TASKS)


def _tasks(client: "Client") -> Iterable[tuple[str, str]]:
    return ((task.id, f"{task.name}: {task.status}") for task in _newest_tasks(client))


def _labels(client: "Client") -> Iterable[tuple[str, str]]:
    pairs = {pair for task in _newest_tasks(client) for pair in task.labels.items()}
    return ((f"{key}={text}", "") for key, text in sorted(pairs))


class Known(Text):
    """Text that a shell completes with what the service knows."""

    def __init__(self, name: str, values: Values) -> None:
        self.name, self._values = name, values

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return _completions(self._values, incomplete)


known_agent = Known("id", lambda client: ((each["id"], each["name"]) for each in client.agents()))
known_task = Known("task_id", _tasks)


class Label(click.ParamType[tuple[str, str]]):
    """A label as KEY=VALUE; converted to a pair, which the service validates."""

    name = "K=V"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        key, equals, text = Text().convert(value, param, ctx).partition("=")
        if not key or not equals:
            self.fail("must be KEY=VALUE", param, ctx)
        return key, text

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return _completions(_labels, incomplete)


def json_input(value: str) -> dict[str, Any]:
    """A JSON object, or @FILE with one; @- reads stdin. Its numbers stay exact."""
    # Imported here, since the server commands need no runner.
    from taskservice.runner.run import parse_object

    text = value.encode(errors="replace")
    try:
        if value.startswith("@"):
            # One more byte shows that a file is too large.
            with click.open_file(value[1:], "rb") as file:
                text = file.read(MAX_OBJECT + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise click.BadParameter(f"{value[1:]} can't be read: {reason}") from None
    parsed = parse_object(text)
    if parsed is None:
        raise click.BadParameter(_reason(text))
    return parsed


def json_file(path: str) -> dict[str, Any]:
    """A file with a JSON object; - reads stdin."""
    return json_input(f"@{path}")


def _reason(text: bytes) -> str:
    if len(text) > MAX_OBJECT:
        return "is larger than 1 MiB"
    try:
        value = json.loads(text)
    except RecursionError:
        return "is nested too deeply"
    except ValueError as error:
        return f"is not JSON: {error}; an example is '{{\"day\": 1}}', or @FILE"
    if not isinstance(value, dict):
        return 'must be a JSON object, such as {"day": 1}'
    return "contains a key twice, a number that can't be stored exactly, or too many levels"


def _json_or_member(value: str) -> dict[str, Any]:
    """Like `json_input`, or one member of the object as KEY=VALUE, whose value is a string."""
    key, equals, text = value.partition("=")
    if equals and key and not key.lstrip().startswith(("@", "{", "[", '"')):
        return {Text()(key): Text()(text)}
    return json_input(value)


def _merged(
    ctx: click.Context, param: click.Parameter, objects: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """All members; None if the option is not given."""
    return {key: value for part in objects for key, value in part.items()} if objects else None


task_input = click.option(
    "--input",
    "input_object",
    type=_json_or_member,
    multiple=True,
    callback=_merged,
    metavar="JSON",
    help="Input of the task: a JSON object, @FILE with one (@- reads stdin), or KEY=VALUE for a "
    "string. Repeatable.",
)
labels_option = partial(click.option, "--label", "labels", type=Label(), multiple=True)
task_labels = labels_option(help="Label of the task. Repeatable.")
label_filter = labels_option(help="Only tasks with this label. Repeat to require several.")
task_callback = click.option(
    "--callback",
    type=Text(),
    metavar="URL",
    help="Address that receives a webhook when the task ends.",
)


def examples(*lines: str) -> str:
    """The end of a command's help: examples, one per line."""
    heading = "Examples:" if len(lines) > 1 else "Example:"
    return "\n".join(["\b", heading, *(f"  {line}" for line in lines)])


json_lines = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
json_object = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
