"""Parses JSON strictly by RFC 8259 and RFC 7493, and writes compact JSON."""

import json
import re
from functools import partial
from typing import Any

import orjson

from taskservice.exact_json import exact_double, is_deeper, unique_members

MAX_DEPTH = 64
MAX_NUMBER = 1_000
# Limits for the JSON of a request, which no valid input or output can exceed. In memory, an object
# takes up to 230 bytes, and any other value with its key takes up to 190 bytes.
MAX_CONTAINERS = 350_000
MAX_VALUES = 700_000
# Text with at most this many containers takes little memory to parse, relative to its length.
FEW_CONTAINERS = 50_000

# Matches a string, which may lack its closing quote, or a character that is counted.
_STRING_OR_COUNTED = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{\[,]', re.DOTALL)

# The escape of NUL. An escaped backslash does not begin such an escape.
_ESCAPED_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


class NotJson(ValueError):
    """Raised if the text is not valid JSON; the message is the reason."""


class UnsupportedNumber(ValueError):
    """Raised for a number that many programs can't read exactly; the message is the reason."""


def loads_request(data: bytes, max_containers: int = MAX_CONTAINERS) -> Any:
    """Like `loads`, for text from a client; also raises NotJson for too many values."""
    # Check the counts before the text is parsed, since parsing can take too much memory.
    _check_counts(data, max_containers)
    return loads(data)


def has_many_containers(data: bytes) -> bool:
    """Whether this text may contain more than FEW_CONTAINERS objects and arrays."""
    return data.count(b"{") + data.count(b"[") > FEW_CONTAINERS


def loads(data: bytes) -> Any:
    """Parse JSON text in UTF-8.

    NUL in a string becomes U+FFFD. A number that Python would round is an `orjson.Fragment`. Raises
    NotJson for invalid JSON, NaN, Infinity, duplicate keys, lone surrogates, a byte order mark, or
    nesting over 64; UnsupportedNumber for a number that is outside the range of a double or has
    more than 1,000 characters.
    """
    if rb"\u0000" in data:
        # This substitution takes longer than all checks, so it runs only if the text may contain
        # NUL.
        data = _ESCAPED_NUL.sub(rb"\1\\ufffd", data)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise NotJson(f"byte {error.start} is not UTF-8") from None
    if text.startswith("\ufeff"):
        raise NotJson("a byte order mark is not JSON")
    try:
        value = _decoder.decode(text)
    except RecursionError:
        raise NotJson(f"nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    if text.count("{") + text.count("[") > MAX_DEPTH and is_deeper(value, MAX_DEPTH):
        raise NotJson(f"nested deeper than {MAX_DEPTH} levels")
    if "\\ud" in text.lower():
        try:
            dumps(value)
        except TypeError:
            raise NotJson("a lone surrogate is not a character") from None
    return value


# `dumps` writes a value as compact JSON in UTF-8. `canonical` also sorts the keys, so that equal
# values become equal text.
dumps = orjson.dumps
canonical = partial(orjson.dumps, option=orjson.OPT_SORT_KEYS)
# JSON text that `dumps` writes unchanged.
fragment = orjson.Fragment


def _check_counts(data: bytes, max_containers: int) -> None:
    containers = data.count(b"{") + data.count(b"[")
    if containers <= max_containers and containers + data.count(b",") <= MAX_VALUES:
        return
    # Now count exactly: many of these characters can be inside strings.
    containers = values = 0
    for match in _STRING_OR_COUNTED.finditer(data):
        containers += match[0] in (b"{", b"[")
        values += match[0] in (b"{", b"[", b",")
        if containers > max_containers:
            raise NotJson(f"more than {max_containers:,} objects and arrays")
        if values > MAX_VALUES:
            raise NotJson(f"more than {MAX_VALUES:,} values")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    try:
        return unique_members(pairs)
    except ValueError as error:
        raise NotJson(str(error)) from None


def _no_constant(name: str) -> Any:
    raise NotJson(f"{name} is not JSON")


def _integer(text: str) -> Any:
    if len(text) <= 19 and -(1 << 63) <= int(text) < 1 << 63:
        return int(text)
    return _as_written(text)


def _float(text: str) -> Any:
    try:
        value = exact_double(text) if len(text) <= MAX_NUMBER else None
    except ValueError as error:
        raise UnsupportedNumber(str(error)) from None
    return _as_written(text) if value is None else value


def _as_written(text: str) -> orjson.Fragment:
    if len(text) > MAX_NUMBER:
        raise UnsupportedNumber(f"a number has more than {MAX_NUMBER} characters")
    return fragment(text)


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_no_constant
)
