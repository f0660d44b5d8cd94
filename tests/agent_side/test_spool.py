"""The spool: lines are split as printed, and stay on the disk until they are sent."""

import errno
import random
import resource
import signal
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pytest

from taskservice.client import log_tail
from taskservice.client import spool as spool_module
from taskservice.client.spool import Batch, Spool, now
from taskservice.runner.program_output import LineSplitter, Masker, last_line


def split(*blocks: bytes) -> list[bytes]:
    """The lines of a stream that comes in these blocks."""
    splitter = LineSplitter(Masker({}))
    text = b"".join([splitter.feed(block) for block in blocks] + [splitter.close()])
    return text.split(b"\n")[:-1]


@pytest.mark.parametrize(
    ("printed", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"one\ntwo", [b"one", b"two"]),
        (b"one\r\ntwo\r\n", [b"one", b"two"]),
        (b"10%\r20%\r100%\n", [b"100%"]),
        (b"10%\r20%\r\n", [b"20%"]),
        (b"\r10%\n", [b"10%"]),
        (b"\r\r\n", [b""]),
        (b"10%\r20%", [b"20%"]),
        (b"10%\r", [b"10%"]),
        (b"a\r\r\nb\rc\r\n\nd\r", [b"a", b"c", b"", b"d"]),
    ],
)
def test_lines_are_the_same_however_they_come(printed: bytes, lines: list[bytes]) -> None:
    assert split(printed) == lines
    assert split(*(printed[at : at + 1] for at in range(len(printed)))) == lines
    for cut in range(len(printed)):
        assert split(printed[:cut], printed[cut:]) == lines


def test_any_bytes_come_out_the_same_in_any_blocks() -> None:
    chance = random.Random(6)
    for _ in range(50):
        pieces = [b"a", b"\r", b"\n", b"\xff", "ü".encode(), b"\0", b"x" * 40_000]
        printed = b"".join(chance.choices(pieces, [9, 2, 2, 1, 1, 1, 0.3], k=60))
        whole = split(printed)
        at, blocks = 0, []
        while at < len(printed):
            size = chance.choice([1, 7, 1_000, 50_000])
            blocks.append(printed[at : at + size])
            at += size
        assert split(*blocks) == whole


def test_line_without_an_end_takes_little_memory() -> None:
    splitter = LineSplitter(Masker({}))
    for _ in range(200):
        splitter.feed(b"x" * 1_000_000)
    line = splitter.close()
    assert line.count(b"\n") == 1
    assert line.endswith(b"[taskservice: truncated here, the line has 200,000,000 bytes]\n")


def test_cut_line_ends_between_characters() -> None:
    (line,) = split("ü".encode() * 100_000)
    assert "ü… [taskservice: truncated here" in line.decode()
    assert len(line) <= 65_536


def test_last_line_is_found_behind_many_blocks() -> None:
    end = b""
    for number in range(100_000):
        end = last_line(end + b"%d\n" % number)
    end = last_line(end + b"the ")
    end = last_line(end + b"end\n \n")
    assert end.strip() == b"the end"


def test_last_line_is_the_last_text_of_a_progress_bar() -> None:
    assert last_line(b"start\n10%\r50%\r{}\r\n\n").strip() == b"{}"


# --- the spool ---------------------------------------------------------------------------


Lines = list[tuple[bytes, int]]  # each with its time
BEGAN = 1_795_000_000_000


def numbered(first: int, last: int) -> Lines:
    """A thousand lines each have the same time."""
    return [
        (b"line %d" % number, BEGAN + (number - 1) // 1_000) for number in range(first, last + 1)
    ]


def put(spool: Spool, first: int, last: int) -> None:
    for at, lines in groupby(numbered(first, last), itemgetter(1)):
        spool.put(text_of(lines), at)


def text_of(lines: Iterable[tuple[bytes, int]]) -> bytes:
    return b"".join(line + b"\n" for line, _ in lines)


def drained(spool: Spool, most: int = 100_000) -> Lines:
    """All lines, as they would be sent; their numbers must ascend by one."""
    lines: Lines = []
    expected = None
    while (batch := spool.peek(most)) is not None:
        assert spool.peek(most) == batch
        assert expected in (None, batch.seq)
        expected = batch.seq + batch.lines
        batch_lines = lines_of(batch)
        assert len(batch_lines) == batch.lines
        assert batch.size == len(text_of(batch_lines))
        assert batch.size <= most or batch.lines == 1
        lines += batch_lines
        spool.confirm(batch)
    return lines


def lines_of(batch: Batch) -> Lines:
    return [(line, at) for at, text in batch.texts for line in text.split(b"\n")[:-1]]


def test_lines_come_out_in_order_and_leave_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool, 1, 100_000)
    assert spool.count() == 100_000
    assert drained(spool) == numbered(1, 100_000)
    assert spool.count() == 0
    assert (tmp_path / "lines").stat().st_size == 0


def test_another_process_continues_after_one_was_killed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool, 1, 50_000)
    sent = []
    for _ in range(3):
        batch = spool.peek(100_000)
        assert batch is not None
        sent += lines_of(batch)
        spool.confirm(batch)
    spool.peek(100_000)  # on its way, and never confirmed
    put(spool, 50_001, 60_000)
    with open(tmp_path / "lines", "ab") as file:
        file.write(b"half a li")
    resumed = Spool(tmp_path)
    assert resumed.count() == 60_000 - len(sent)
    batch = resumed.peek(1_000)
    assert batch is not None
    assert batch.seq == len(sent) + 1
    assert sent + drained(resumed) == numbered(1, 60_000)


def test_another_process_continues_after_all_was_sent(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool, 1, 1_000)
    drained(spool)
    put(spool, 1_001, 2_000)
    resumed = Spool(tmp_path)
    batch = resumed.peek(1_000)
    assert batch is not None
    assert batch.seq == 1_001
    assert drained(resumed) == numbered(1_001, 2_000)


def test_lines_keep_their_time_wherever_a_batch_ends(tmp_path: Path) -> None:
    for most in range(1, 60):
        spool = Spool(tmp_path)
        spool.put(b"one\n", 1_000)
        spool.put(b"two\n", 2_000)
        assert [at for _, at in drained(spool, most)] == [1_000, 2_000], most


def test_lines_after_a_note_about_lost_lines_keep_their_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(b"one\n" * 100 + b"two\n" * 100, 1_000)
    sent = spool.peek(400)
    assert sent is not None
    spool.confirm(sent)
    spool.renumber(sent.lines - 10)
    note = spool.peek(400)
    assert note is not None
    spool.confirm(note)
    assert {at for _, at in drained(spool)} == {1_000}


def test_middle_of_a_long_log_is_left_out_and_a_mark_says_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "HEAD_BYTES", 2_000_000)
    monkeypatch.setattr(spool_module, "TAIL_BYTES", 1_000_000)
    monkeypatch.setattr(spool_module, "MAX_LOG_BYTES", 4_000_000)
    monkeypatch.setattr(log_tail, "SEGMENT_BYTES", 100_000)
    spool = Spool(tmp_path)
    put(spool, 1, 1_000_000)
    first = drained(spool)
    assert spool.peek(1_000) is None  # the rest waits for the end of the program
    spool.end()
    (mark, _), *last = drained(spool)
    assert first[:-1] == numbered(1, len(first) - 1)
    assert b"its last lines follow" in first[-1][0]
    assert last == numbered(1_000_001 - len(last), 1_000_000)
    assert 1_000_000 <= len(text_of(last)) <= 1_200_000
    dropped = numbered(len(first), 1_000_000 - len(last))
    expected = f"{len(dropped):,} lines ({len(text_of(dropped)):,} bytes) left out here"
    assert mark.decode().startswith(f"[taskservice: {expected}")
    put(spool, 1, 1_000)  # such as a note about the output
    assert drained(spool) == numbered(1, 1_000)


def test_long_log_has_a_line_now_and_then_while_its_program_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a line for ten minutes, the task would seem to hang."""
    monkeypatch.setattr(spool_module, "HEAD_BYTES", 10)
    spool = Spool(tmp_path)
    put(spool, 1, 100)
    assert [b"its last lines follow" in line for line, _ in drained(spool)] == [True]
    put(spool, 101, 200)
    assert drained(spool) == []
    monkeypatch.setattr(spool_module, "NOTE_SECONDS", 0)
    put(spool, 201, 201)
    [(line, _)] = drained(spool)
    assert line.startswith(b"[taskservice: 200 more lines so far; the last ones follow")
    spool.end()
    assert drained(spool) == numbered(1, 201)


@pytest.mark.usefixtures("small_files")
def test_full_disk_shortens_the_end_of_a_long_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "HEAD_BYTES", 50_000)
    spool = Spool(tmp_path)
    put(spool, 1, 1_000_000)  # no file may get over 100 kB
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 300_000
    first = drained(spool)
    spool.end()
    (mark, _), *last = drained(spool)
    assert last == numbered(1_000_001 - len(last), 1_000_000)
    assert int(mark.split()[1].replace(b",", b"")) == 1_000_001 - len(first) - len(last)


def left_out(mark: bytes) -> int:
    text = mark.decode()
    assert text.endswith("left out here: there was no space]")
    return int(text.removeprefix("[taskservice: ").split()[0].replace(",", ""))


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process gets over 100 kB: what then fails is as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_full_disk_leaves_the_memory(tmp_path: Path) -> None:
    failures: list[OSError] = []
    spool = Spool(tmp_path, failures.append)
    put(spool, 1, 100_000)
    assert drained(spool) == numbered(1, 100_000)
    assert {failure.errno for failure in failures} <= {errno.EFBIG, errno.ENOSPC}
    assert failures


@pytest.mark.usefixtures("small_files")
def test_lines_that_found_no_room_leave_a_mark_on_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool, 1, 1_000)
    spool.put(text_of([(b"x" * 50_000, 0)] * 3), now())  # too large for any file here
    assert spool.close() == (1_000, 3)
    *lines, (mark, _) = drained(Spool(tmp_path))
    assert lines == numbered(1, 1_000)
    assert left_out(mark) == 3


def test_memory_goes_to_the_disk_when_there_is_room_again(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    spool = Spool(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    put(spool, 1, 10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    signal.signal(signal.SIGXFSZ, handler)
    assert spool.close() == (10, 0)
    assert drained(Spool(tmp_path)) == numbered(1, 10)


def test_place_that_cannot_be_read_loses_no_line(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool, 1, 10)
    (tmp_path / "position").write_bytes(b"")
    batch = Spool(tmp_path).peek(1_000)
    assert batch is not None
    # The number is higher than any that the service has, so it answers with the one it expects.
    assert batch.seq > 1 << 50


def test_without_a_folder_lines_wait_in_memory() -> None:
    spool = Spool(None)
    put(spool, 1, 1_000_000)
    *first, (mark, _) = drained(spool)
    assert first == numbered(1, len(first))
    assert len(first) + left_out(mark) == 1_000_000
    assert len(first) > 100_000
