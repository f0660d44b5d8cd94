"""The spool: lines are split as printed, and stay on the disk until they are sent."""

import errno
import random
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskservice.client.sender import Batch
from taskservice.runner.program_output import LastLine, LineSplitter, Masker
from taskservice.runner.spool import SEGMENT_BYTES, Spool


def split(*blocks: bytes) -> list[bytes]:
    """The lines of a stream that comes in these blocks."""
    splitter = LineSplitter(Masker({}))
    texts = [splitter.feed(block) for block in blocks] + [splitter.close()]
    text = b"".join(text for text, _ in texts)
    lines = text.split(b"\n")[:-1]
    assert len(lines) == sum(count for _, count in texts)
    return lines


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
    (line, count) = splitter.close()
    assert count == 1
    assert line.endswith(b"[taskservice: cut here, the line has 200,000,000 bytes]\n")


def test_cut_line_ends_between_characters() -> None:
    (line,) = split("ü".encode() * 100_000)
    assert "ü… [taskservice: cut here" in line.decode()
    assert len(line) <= 65_536


def test_last_line_is_found_behind_many_blocks() -> None:
    last_line = LastLine()
    for number in range(100_000):
        last_line.feed(b"%d\n" % number)
    last_line.feed(b"the ")
    last_line.feed(b"end\n \n")
    assert last_line.text() == b"the end"


def test_last_line_is_the_last_text_of_a_progress_bar() -> None:
    last_line = LastLine()
    last_line.feed(b"start\n10%\r50%\r{}\r\n\n")
    assert last_line.text() == b"{}"


# --- the spool ---------------------------------------------------------------------------


def numbered(first: int, last: int) -> list[bytes]:
    return [b"line %d" % number for number in range(first, last + 1)]


def drained(spool: Spool, most: int = 100_000) -> list[bytes]:
    """All lines, as they would be sent; their numbers must be those of a writer that counts."""
    lines: list[bytes] = []
    expected = None
    while (batch := spool.peek(most)) is not None:
        assert spool.peek(most) == batch
        assert expected in (None, batch.seq)
        expected = batch.seq + batch.lines
        assert batch.data.count(b"\n") == batch.lines
        assert len(batch.data) <= most or batch.lines == 1
        lines += batch.data.split(b"\n")[:-1]
        spool.confirm(batch)
    return lines


def test_lines_come_out_in_order_and_leave_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for first in range(1, 100_001, 1_000):
        spool.put(numbered(first, first + 999))
    assert spool.count() == 100_000
    assert drained(spool) == numbered(1, 100_000)
    assert spool.count() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_part_of_a_batch_can_be_confirmed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(numbered(1, 10))
    batch = spool.peek(1_000)
    assert batch is not None
    first = batch.data.split(b"\n")[0] + b"\n"
    spool.confirm(Batch.of(batch.seq, first, batch.times))
    rest = spool.peek(1_000)
    assert rest is not None
    assert (rest.seq, rest.lines) == (2, 9)


def test_another_process_continues_after_one_was_killed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(numbered(1, 50_000))
    sent = []
    for _ in range(3):
        batch = spool.peek(100_000)
        assert batch is not None
        sent += batch.data.split(b"\n")[:-1]
        spool.confirm(batch)
    spool.peek(100_000)  # on its way, and never confirmed
    spool.put(numbered(50_001, 60_000))
    newest = max(tmp_path.glob("*.lines"))
    with open(newest, "ab") as file:
        file.write(b"half a li")
    resumed = Spool.load(tmp_path)
    assert resumed.count() == 60_000 - len(sent)
    batch = resumed.peek(1_000)
    assert batch is not None
    assert batch.seq == len(sent) + 1
    assert sent + drained(resumed) == numbered(1, 60_000)


def test_oldest_lines_make_room_and_a_mark_says_how_many(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=3 * SEGMENT_BYTES)
    for first in range(1, 1_000_001, 1_000):
        spool.put(numbered(first, first + 999))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4 * SEGMENT_BYTES
    mark, *rest = drained(spool)
    dropped = left_out(mark)
    assert rest == numbered(dropped + 1, 1_000_000)
    assert dropped > 500_000


def left_out(mark: bytes) -> int:
    text = mark.decode()
    assert text.endswith("left out here: there was no space]")
    return int(text.removeprefix("[taskservice: ").split()[0].replace(",", ""))


def test_lines_being_sent_are_never_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=3 * SEGMENT_BYTES)
    spool.put(numbered(1, 1_000))
    batch = spool.peek(1_000)
    assert batch is not None
    for first in range(1_001, 500_001, 1_000):
        spool.put(numbered(first, first + 999))
    assert spool.peek(1_000) == batch
    lines = drained(spool)
    # The first segment, of which a part is on its way, stays whole.
    place = next(place for place, line in enumerate(lines) if b"left out" in line)
    assert lines[:place] == numbered(1, place)
    first = place + left_out(lines[place]) + 1
    assert lines[place + 1 :] == numbered(first, 500_000)


def test_resumed_spool_has_its_mark(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=2 * SEGMENT_BYTES)
    for first in range(1, 300_001, 1_000):
        spool.put(numbered(first, first + 999))
    mark, *rest = drained(Spool.load(tmp_path))
    assert rest == numbered(left_out(mark) + 1, 300_000)


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
def test_full_disk_pushes_out_the_oldest_lines(tmp_path: Path) -> None:
    failures: list[OSError] = []
    spool = Spool(tmp_path, on_full=failures.append)
    for first in range(1, 100_001, 100):
        spool.put(numbered(first, first + 99))
    mark, *rest = drained(spool)
    assert rest == numbered(left_out(mark) + 1, 100_000)
    assert {failure.errno for failure in failures} <= {errno.EFBIG, errno.ENOSPC}
    assert failures


@pytest.mark.usefixtures("small_files")
def test_lines_that_found_no_room_leave_a_mark_on_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(numbered(1, 1_000))
    batch = spool.peek(1_000)
    assert batch is not None
    spool.put([b"x" * 50_000] * 3)  # too large for any file here, and the batch may not go
    lost = spool.close()
    assert lost == 3
    *lines, mark = drained(Spool.load(tmp_path))
    assert lines == numbered(1, 1_000)
    assert left_out(mark) == 3


def test_memory_goes_to_the_disk_when_there_is_room_again(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    spool = Spool(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    spool.put(numbered(1, 10))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    signal.signal(signal.SIGXFSZ, handler)
    assert spool.close() == 0
    assert drained(Spool.load(tmp_path)) == numbered(1, 10)


def test_place_that_cannot_be_read_loses_no_line(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(numbered(1, 10))
    (tmp_path / "place").write_bytes(b"")
    batch = Spool.load(tmp_path).peek(1_000)
    assert batch is not None
    # The number is higher than any that the service has, so it answers with the one it expects.
    assert batch.seq > 1 << 50


def test_folder_that_is_gone_leaves_the_memory(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    failures: list[OSError] = []
    spool = Spool(folder, on_full=failures.append)
    shutil.rmtree(folder)
    spool.put(numbered(1, 1_000))
    assert drained(spool) == numbered(1, 1_000)
    for first in range(1, 1_000_001, 1_000):
        spool.put(numbered(first, first + 999))
    mark, *rest = drained(spool)
    assert rest == numbered(left_out(mark) + 1, 1_000_000)
    assert failures


def test_disk_that_can_not_be_written_any_more_costs_no_line_on_it(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    spool = Spool(folder)
    for first in range(1, 150_001, 1_000):
        spool.put(numbered(first, first + 999))
    # The next file can't be made.
    shutil.rmtree(folder)
    for first in range(150_001, 250_001, 1_000):
        spool.put(numbered(first, first + 999))
    assert drained(spool) == numbered(1, 250_000)
