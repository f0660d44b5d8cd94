"""Options that several commands share: durations, text, IDs, labels, JSON, and --json."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial, reduce
from math import inf
from operator import or_
from typing import Any

import click

from taskservice.quantities import typed, typed_seconds
from taskservice.terminal import exit_with_error, notice
from taskservice.terms import MAX_OBJECT


@dataclass(frozen=True)
class Duration(click.ParamType[int]):
    """A number of seconds, or numbers with units, such as 90d or 1h30m; converted to seconds."""

    name = "time"
    minimum: int = 0
    maximum: float = inf
    # Refuse a number without a unit, since the user could mean days instead of seconds.
    needs_unit: bool = False

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        seconds = typed_seconds(value)
        if self.needs_unit and value.isdigit():
            self.fail(f"{value!r} needs a unit, such as {value}d", param, ctx)
        if seconds is None:
            seconds_example = "" if self.needs_unit else "90 (seconds), "
            problem = f"{value!r} must be a duration such as {seconds_example}5m, 1h30m or 90d"
            self.fail(problem, param, ctx)
        if seconds < self.minimum:
            self.fail(f"must be at least {typed(self.minimum)}", param, ctx)
        if seconds > self.maximum:
            self.fail(f"must be at most {typed(int(self.maximum))}", param, ctx)
        return seconds


A_CENTURY = 36_600 * 86_400  # in seconds; slightly more than 100 years


def time_before(ctx: click.Context, param: click.Parameter, seconds: int | None) -> str | None:
    """The time `seconds` ago; None without the option."""
    return None if seconds is None else (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def text(value: str) -> str:
    """The text; raises BadParameter if it is not UTF-8, since arguments can be any bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("must be text in UTF-8") from None
    return value


def only_match(ids: Sequence[str], noun: str, prefix: str, not_found: int = 1) -> str:
    """The only item of `ids`, the IDs that match `prefix`; exits if there are none or several."""
    if not ids:
        exit_with_error(f"No {noun} matches {prefix}", not_found)
    if len(ids) > 1:
        exit_with_error(f"Several IDs match {prefix}, such as {' and '.join(ids[:2])}", 2)
    return ids[0]


def has_prefix(uuid: str, prefix: str) -> bool:
    """Whether a UUID begins with these digits, with or without hyphens."""
    digits = prefix.replace("-", "").lower()
    return bool(digits) and uuid.replace("-", "").startswith(digits)


def key_value(value: str) -> tuple[str, str]:
    """The key and value of KEY=VALUE; the service validates them."""
    key, equals, rest = text(value).partition("=")
    if not key or not equals:
        raise click.BadParameter("must be KEY=VALUE")
    return key, rest


flag = partial(click.option, is_flag=True)
text_option = partial(click.option, type=text)
json_lines = flag("--json", "as_json", help="Print one JSON object per line.")
json_object = flag("--json", "as_json", help="Print one JSON object.")


def json_input(value: str) -> dict[str, Any]:
    """The object in JSON, in a file (`@FILE`) or on stdin (`@-`), with exact numbers."""
    # Imported here, so that the server commands do not load the runner.
    from taskservice.runner.run import parse_object

    data = value.encode(errors="replace")
    try:
        if value.startswith("@"):
            # Read one byte more than allowed, to notice a file that is too large.
            with click.open_file(value[1:], "rb") as file:
                data = file.read(MAX_OBJECT + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise click.BadParameter(f"{value[1:]} can't be read: {reason}") from None
    parsed = parse_object(data)
    if parsed is None:
        raise click.BadParameter(_reason(data))
    return parsed


def _reason(data: bytes) -> str:
    if len(data) > MAX_OBJECT:
        return "is larger than 1 MiB"
    try:
        value = json.loads(data)
    except RecursionError:
        return "is nested too deeply"
    except ValueError as error:
        return f"is not JSON: {error}; an example is '{{\"day\": 1}}', or @FILE"
    if not isinstance(value, dict):
        return 'must be a JSON object, such as {"day": 1}'
    return "contains a key twice, a number that can't be stored exactly, or too many levels"


def _json_or_member(value: str) -> dict[str, Any]:
    """Like `json_input`, but KEY=VALUE is also accepted, as an object with one string."""
    key, equals, rest = value.partition("=")
    if equals and key and not key.lstrip().startswith(("@", "{", "[", '"')):
        return {text(key): text(rest)}
    return json_input(value)


agent_option = partial(text_option, "--agent", metavar="ID")
json_option = partial(click.option, type=json_input, metavar="JSON")
limit_option = partial(click.option, "--limit", type=click.IntRange(1), metavar="N")
task_input = partial(
    click.option,
    "--input",
    type=_json_or_member,
    multiple=True,
    callback=lambda ctx, param, objects: reduce(or_, objects) if objects else None,
    metavar="JSON",
    help="Input of the task: a JSON object, @FILE to read a file (@- for stdin), or KEY=VALUE for "
    "a string. Repeatable.",
)
labels_option = partial(
    click.option,
    "--label",
    "labels",
    type=key_value,
    metavar="K=V",
    multiple=True,
    callback=lambda ctx, param, pairs: dict(pairs) or None,
)
since_option = partial(
    click.option, "--since", type=Duration(maximum=A_CENTURY), callback=time_before
)
agent_filter = agent_option(help="Only tasks of this agent.")
label_filter = labels_option(help="Only tasks with this label. Repeat to require several labels.")
failed_filter = flag("--failed", help="Only tasks that failed or timed out.")


class OptionOfRun(click.Option):
    """An option of `run` that is ignored if its value is wrong, unless --strict is given."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().process_value(ctx, value)
        except click.BadParameter as error:
            if ctx.params["is_strict"]:
                raise
            if self.multiple and len(value) > 1:
                valid = [self.process_value(ctx, (text,)) for text in value]
                return reduce(or_, filter(None, valid), {}) or None
            error.param = error.param or self
            notice(f"{error.format_message()}; the task is started without this option")
            return None


def task_options(
    contact: str, timeout: Duration, cls: type[click.Option] = click.Option
) -> Callable[[Any], Any]:
    """The options of a new task, which times out if `contact` sends no requests."""
    in_order = (
        text_option(
            "--name", cls=cls, help="Display name of the task (default: the agent's name)."
        ),
        task_input(cls=cls),
        labels_option(cls=cls, help="Label of the task. Repeatable."),
        text_option(
            "--callback",
            cls=cls,
            metavar="URL",
            help="Address that receives a webhook when the task ends.",
        ),
        click.option(
            "--timeout",
            cls=cls,
            type=timeout,
            help=f"The service ends the task if {contact} sends no request for TIME, such as 90 "
            "(seconds) or 1h30m; 0 for no limit.",
        ),
    )
    return lambda function: reduce(lambda inner, add: add(inner), reversed(in_order), function)


def _examples(line: str, arguments: Sequence[str]) -> str:
    """The end of a command's help: an example for each item of `arguments`, or `line` alone."""
    examples = [f"  {line} {text}".rstrip() for text in arguments or [""]]
    return "\n".join(["\b", "Examples:" if len(examples) > 1 else "Example:", *examples])


def command(line: str, *arguments: str, **attributes: Any) -> Callable[..., click.Command]:
    """A decorator that makes a command; `line` is the command line without the arguments."""
    return click.command(line.split()[-1], epilog=_examples(line, arguments), **attributes)


class Group(click.Group):
    """A group whose commands have examples in their help: `@group.command(NAME, ARGUMENTS)`."""

    def command(self, *args: str, **attributes: Any) -> Callable[..., click.Command]:  # type: ignore[override]
        name, *arguments = args
        epilog = _examples(f"taskservice {self.name} {name}", arguments)
        return super().command(name, epilog=epilog, **attributes)
