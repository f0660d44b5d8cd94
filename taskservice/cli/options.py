"""What the options of several commands share: durations, text, and JSON for programs."""

import re

import click

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Duration(click.ParamType[int]):
    """A number with a unit, such as 30m, 12h or 90d; converted to seconds.

    With `default_unit`, the unit is optional. `maximum` is in seconds.
    """

    name = "duration"

    def __init__(
        self, default_unit: str = "", minimum: int = 0, maximum: int | None = None
    ) -> None:
        self._default_unit, self._minimum, self._maximum = default_unit, minimum, maximum

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]{1,1000})([smhd]?)", value)
        unit = match and (match[2] or self._default_unit)
        if match is None or not unit:
            self.fail("must be a number with s, m, h or d, such as 90d", param, ctx)
        seconds = int(match[1]) * _UNITS[unit]
        if seconds < self._minimum:
            self.fail(f"must be at least {self._minimum} s", param, ctx)
        if self._maximum is not None and seconds > self._maximum:
            self.fail(f"must be at most {self._maximum} s", param, ctx)
        return seconds


class Text(click.ParamType[str]):
    """Text that UTF-8 can hold, as all that is stored or sent; Python takes in any bytes."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail("must be text in UTF-8", param, ctx)
        return value


class Label(click.ParamType[tuple[str, str]]):
    """A label as KEY=VALUE; converted to both. The service checks them."""

    name = "label"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        key, equals, text = Text().convert(value, param, ctx).partition("=")
        if not key or not equals:
            self.fail("must be KEY=VALUE", param, ctx)
        return key, text


json_lines = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
json_object = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
