"""Pure functions: dumped rows, IDs and times, key texts, and strict JSON."""

import json
import string
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import UUID

import marshmallow
import pytest
from flask import Flask
from hypothesis import example, given, settings
from hypothesis import strategies as some
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase

from taskservice import auth, terms
from taskservice.database import clock
from taskservice.database.models import Agent, ApiKey, CallbackSecret, Task, User
from taskservice.database.transactions import reading
from taskservice.schemas import fields, strict_json
from taskservice.schemas.fields import RowSchema
from taskservice.schemas.tasks import TaskSchema, task_schema
from taskservice.schemas.users import agent_schema, callback_secret_schema, key_schema, user_schema
from taskservice.services.task_json import Shape
from tests.support.api_client import ApiClient, expect
from tests.support.internals import end_for_silence

# The same examples on every machine, however slow that is.
steady = settings(database=None, deadline=None, derandomize=True)

# --- rows --------------------------------------------------------------------------------


def test_every_field_of_a_task_names_its_column() -> None:
    written_otherwise = {"logs", "agent", "user"}
    assert TaskSchema().columns.keys() == TaskSchema().fields.keys() - written_otherwise


class WithLogs:
    """A row of the database with `logs`, without which marshmallow leaves them out."""

    logs = None

    def __init__(self, row: Any) -> None:
        self.row = row

    def __getattr__(self, name: str) -> Any:
        return getattr(self.row, name)


def test_plan_writes_what_marshmallow_writes_of_real_rows(alice: ApiClient, app: Flask) -> None:
    tasks = [alice.start(callback="https://example.com/", input={"ü": 1}) for _ in range(4)]
    alice.append(tasks[0], "one")
    alice.report(tasks[1], status="error", error={"message": "out of paper"}, name="ü")
    end_for_silence(app, tasks[2])
    expect(alice.post(f"/task/{tasks[3]['id']}/cancel"), 200)
    alice.agent_key()
    pairs: list[tuple[RowSchema, type[DeclarativeBase]]] = [
        (task_schema, Task), (Shape(fields=("id", "error")).schema, Task), (agent_schema, Agent),
        (user_schema, User), (key_schema, ApiKey), (callback_secret_schema, CallbackSecret),
    ]  # fmt: skip
    pairs += [(TaskSchema(only=[name]), Task) for name in TaskSchema().columns]
    for schema, table in pairs:
        with app.app_context(), reading() as connection:
            rows = connection.execute(select(table.__table__)).all()
        assert rows
        for row in map(WithLogs, rows):
            of_marshmallow = marshmallow.Schema.dump(schema, row)
            assert strict_json.dumps(schema.dump(row)) == strict_json.dumps(of_marshmallow)


def test_ids_have_one_spelling() -> None:
    text = "01a20e91-17f5-7dd4-9f26-d78f1b1c7336"
    assert fields.parse_id(text) == fields.parse_id(text.upper()) == text
    digits = text.replace("-", "")
    for other in (
        digits, f"{digits}----", f"----{digits}", f"01a2-0e91-17f5-7dd4-{digits[16:]}",
        f"{{{text}}}", f"{{{digits}}}--", f"urn:{digits}", f"uuid:{digits[:-1]}", f"+{text[1:]}",
        f"{text[:-1]}\n", f"０{text[1:]}", f"urn:uuid:{text}", text[:-1], f"{text[:-1]}g", "",
        "x" * 36, "\0" * 36,
    ):  # fmt: skip
        assert fields.parse_id(other) is None, other


@steady
@given(some.text(min_size=36, max_size=36, alphabet="0123456789abcdefABCDEF-{}_ \n٣"))
def test_accepted_id_is_a_lower_case_uuid(text: str) -> None:
    parsed = fields.parse_id(text)
    assert parsed is None or str(UUID(parsed)) == parsed == text.lower()


# --- times and IDs -----------------------------------------------------------------------


@steady
@given(some.datetimes(timezones=some.timezones()))
@example(datetime(2026, 11, 24, 14, 36, 0, 123999, timezone(timedelta(hours=1))))
@example(datetime(2026, 1, 1, tzinfo=UTC))
def test_times_are_utc_with_milliseconds(moment: datetime) -> None:
    try:
        in_utc = moment.astimezone(UTC)
    except OverflowError:  # the first or the last day of the calendar
        return
    text = clock.rfc3339(moment)
    assert len(text) == len("2026-11-24T13:36:00.123Z")
    assert text.endswith("Z")
    late = in_utc - datetime.fromisoformat(text)
    assert timedelta(0) <= late < timedelta(milliseconds=1)


def test_ids_are_uuids_of_version_7_and_of_this_time() -> None:
    for _ in range(1_000):
        text = clock.new_id()
        number = UUID(text)
        assert str(number) == text
        assert (number.version, number.variant) == (7, "specified in RFC 4122")
        made = datetime.fromtimestamp((number.int >> 80) / 1000, UTC)
        assert abs(datetime.now(UTC) - made) < timedelta(seconds=30)


def test_ids_of_several_threads_are_unique_and_ascend_in_each() -> None:
    def make(_: int) -> list[str]:
        return [clock.new_id() for _ in range(5_000)]

    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(make, range(8)))
    assert all(batch == sorted(batch) for batch in batches)
    assert len({one for batch in batches for one in batch}) == 8 * 5_000


def test_ids_cannot_be_guessed_from_one_another() -> None:
    """Random bits after the time, even within one millisecond."""
    steps = [UUID(clock.new_id()).int & ((1 << 62) - 1) for _ in range(1_000)]
    assert len({second - first for first, second in pairwise(steps)}) > 990


# --- key texts ---------------------------------------------------------------------------

KEY_LETTERS = string.digits + string.ascii_letters
# The same in all examples of a property, whose data must not depend on chance.
KEYS = (auth.new(for_agent=False), auth.new(for_agent=True))


@pytest.mark.parametrize("for_agent", [False, True])
def test_new_keys_are_well_formed_and_unique(for_agent: bool) -> None:
    keys = {auth.new(for_agent=for_agent) for _ in range(200)}
    assert len(keys) == 200
    assert all(auth.is_well_formed(key) for key in keys)
    assert len({auth.digest(key) for key in keys}) == 200


@steady
@given(some.data())
def test_one_wrong_letter_is_noticed(data: some.DataObject) -> None:
    key = data.draw(some.sampled_from(KEYS))
    place = data.draw(some.integers(0, len(key) - 1))
    other = data.draw(some.sampled_from(KEY_LETTERS + "_-é").filter(lambda c: c != key[place]))
    assert not auth.is_well_formed(key[:place] + other + key[place + 1 :])


def test_two_letters_in_the_wrong_order_are_noticed() -> None:
    key = auth.new(for_agent=False)
    for place in range(len(key) - 1):
        swapped = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
        assert swapped == key or not auth.is_well_formed(swapped)


@steady
@given(some.text(KEY_LETTERS + "_-tskuer agn,٠é\n", max_size=70))
@example("tsk_user_" + "0" * 46)
@example("tsk_user_" + "٠" * 46)
def test_random_text_is_not_a_key(text: str) -> None:
    assert not auth.is_well_formed(text)
    for prefix in (auth.USER_PREFIX, terms.AGENT_PREFIX):
        assert not auth.is_well_formed(prefix + text)


def test_hint_shows_a_keys_kind_and_little_more() -> None:
    for for_agent, prefix in ((False, "tsk_user_"), (True, "tsk_agent_")):
        key = auth.new(for_agent=for_agent)
        assert terms.key_hint(key) == f"{prefix}…{key[-4:]}"


# --- strict JSON -------------------------------------------------------------------------


def exact(text: str | bytes) -> Any:
    """JSON with each number as the number that is written there."""
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


texts = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0"))
numbers = some.integers() | some.floats(allow_nan=False, allow_infinity=False)
values = some.recursive(
    some.none() | some.booleans() | numbers | texts,
    lambda inner: some.lists(inner) | some.dictionaries(texts, inner),
    max_leaves=30,
)


@steady
@given(values, some.booleans(), some.sampled_from([None, 2]))
@example({"\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"): 1}, True, None)
@example({"": {"": []}, "\\ud800": "\\\\u0000"}, True, 2)
def test_json_is_written_as_it_was_read(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    written = strict_json.dumps(strict_json.loads(text.encode()))
    assert exact(written) == exact(text)
    # And what was written is read the same, byte for byte.
    assert strict_json.dumps(strict_json.loads(written)) == written


@steady
@given(
    some.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
)
@example("-0.0")
@example("1e308")
@example("1e309")
@example("5e-324")
@example("4.9e-324")
@example("1e-9999")
@example("0e9999")
@example("123456789012345.6")
@example("9007199254740993.0")
def test_numbers_are_kept_exactly_or_refused(text: str) -> None:
    try:
        value = strict_json.loads(text.encode())
    except strict_json.UnsupportedNumber:
        assert abs(Decimal(text)) > Decimal("1.79e308")
        return
    written = strict_json.dumps([value]).decode()[1:-1]
    assert Decimal(written) == Decimal(text)
    assert len(written) <= max(len(text), 25)


@steady
@given(some.binary() | some.text(alphabet='{}[]",:\\u0dcef19.-+eE tn\n').map(str.encode))
@example(b'"\\ud800\\u0000"')
@example(b'{"a":"\\uD800"}')
@example(b"[" * 70)
def test_any_bytes_are_accepted_or_refused_without_a_crash(data: bytes) -> None:
    try:
        value = strict_json.loads(data)
    except (strict_json.NotJson, strict_json.UnsupportedNumber):
        return
    # Python's own json reads accepted text the same.
    assert exact(strict_json.dumps(value)) == exact(data.replace(b"\\u0000", b"\\ufffd"))


ESCAPES = (
    (rb'"\u0000"', '"\ufffd"'), (rb'"a\u0000\u0000b"', '"a\ufffd\ufffdb"'),
    (rb'"\\u0000"', r'"\\u0000"'), (rb'"\\\u0000"', '"\\\\\ufffd"'),
    (rb'"\\\\u0000"', r'"\\\\u0000"'), (rb'"\ud83d\ude00"', '"😀"'),
    (rb'"\uFFFF\uffff"', '"\uffff\uffff"'), (rb'"\\ud800"', r'"\\ud800"'),
)  # fmt: skip


def test_escapes_are_what_they_stand_for(subtests: pytest.Subtests) -> None:
    for text, kept in ESCAPES:
        with subtests.test(repr(text)):
            assert strict_json.dumps(strict_json.loads(text)).decode() == kept


@pytest.mark.parametrize("opening", ["[", '{"a":', '[0,"x",', '{"b":0,"a":'])
def test_depth_is_counted_right(opening: str) -> None:
    closing = "]" if opening.startswith("[") else "}"

    def nested(depth: int) -> bytes:
        return (opening * depth + "0" + closing * depth).encode()

    for depth in (1, 2, strict_json.MAX_DEPTH - 1, strict_json.MAX_DEPTH):
        assert strict_json.dumps(strict_json.loads(nested(depth))) == nested(depth)
    for depth in (strict_json.MAX_DEPTH + 1, strict_json.MAX_DEPTH + 2, 500, 5_000, 200_000):
        with pytest.raises(strict_json.NotJson, match="64"):
            strict_json.loads(nested(depth))
