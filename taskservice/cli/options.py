"""Types of options that several commands share: durations, text, labels, and --json."""

import re

import click

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_NUMBER = r"[0-9]{1,1000}"
_DURATION = re.compile("".join(f"(?:({_NUMBER}){unit})?" for unit in _UNITS))


class Duration(click.ParamType[int]):
    """A number of seconds, or numbers with units, such as 90d or 1h30m; converted to seconds."""

    name = "duration"

    def __init__(
        self, minimum: int = 0, maximum: int | None = None, *, needs_unit: bool = False
    ) -> None:
        """Both are in seconds. `needs_unit`: a number without a unit might be meant as days."""
        self._minimum, self._maximum, self._needs_unit = minimum, maximum, needs_unit

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        seconds = _seconds(value)
        if self._needs_unit and value.isdigit():
            self.fail(f"{value!r} needs a unit, such as {value}d", param, ctx)
        if seconds is None:
            seconds_example = "" if self._needs_unit else "90 (seconds), "
            problem = f"{value!r} must be a duration such as {seconds_example}5m, 1h30m or 90d"
            self.fail(problem, param, ctx)
        if seconds < self._minimum:
            self.fail(f"must be at least {_spelled(self._minimum)}", param, ctx)
        if self._maximum is not None and seconds > self._maximum:
            self.fail(f"must be at most {_spelled(self._maximum)}", param, ctx)
        return seconds


def _seconds(text: str) -> int | None:
    """The seconds of a duration; None for any other text."""
    if re.fullmatch(_NUMBER, text):
        return int(text)
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return None
    numbers = zip(match.groups("0"), _UNITS.values(), strict=True)
    return sum(int(number) * size for number, size in numbers)


def _spelled(seconds: int) -> str:
    """The duration with the largest unit that divides it."""
    unit = next((unit for unit, size in _UNITS.items() if seconds and seconds % size == 0), "s")
    return f"{seconds // _UNITS[unit]}{unit}"


class Text(click.ParamType[str]):
    """Text that UTF-8 can encode, as storing and sending require; Python accepts any bytes."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail("must be text in UTF-8", param, ctx)
        return value


class Label(click.ParamType[tuple[str, str]]):
    """A label as KEY=VALUE; converted to a pair, which the service validates."""

    name = "label"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        key, equals, text = Text().convert(value, param, ctx).partition("=")
        if not key or not equals:
            self.fail("must be KEY=VALUE", param, ctx)
        return key, text


task_labels = click.option(
    "--label",
    "labels",
    type=Label(),
    metavar="K=V",
    multiple=True,
    help="Label of the task. Repeatable.",
)
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
