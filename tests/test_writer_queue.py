"""The writer queue: one writer at a time in all threads and processes, also after time-outs."""

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from taskservice.database.writer_queue import WriterQueue
from tests.support.concurrency import is_free
from tests.support.fork_server import ForkedPopen

# Takes turns in a few threads; some wait so briefly that they give up. While it has its turn
# each makes a file that must not be there yet.
CROWD = """
import os, sys, threading, time
from random import uniform
from sqlalchemy.exc import OperationalError
from taskservice.database.writer_queue import WriterQueue

queue, witness = WriterQueue(sys.argv[1]), sys.argv[2]
until, failures, turns = time.monotonic() + float(sys.argv[3]), [], []

def take_turns():
    while time.monotonic() < until:
        try:
            with queue.turn(uniform(0.0001, 0.01)):
                os.close(os.open(witness, os.O_CREAT | os.O_EXCL))
                time.sleep(uniform(0, 0.004))
                os.unlink(witness)
                turns.append(1)
        except OperationalError:
            continue
        except OSError as error:
            failures.append(error)
            return

threads = [threading.Thread(target=take_turns) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(turns))
sys.exit(f"not alone: {failures}" if failures else 0)
"""


def test_turn_after_a_wait_in_vain_is_exclusive(tmp_path: Path) -> None:
    path = tmp_path / "database-writers"
    queue = WriterQueue(str(tmp_path / "database"))
    path.touch()
    for _ in range(30):
        with open(path, "rb+") as other, open(path, "rb+") as third:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(OperationalError), queue.turn(0.002):
                pass
            fcntl.flock(other, fcntl.LOCK_UN)
            with queue.turn(30):
                until = time.monotonic() + 0.02
                while time.monotonic() < until:
                    assert not is_free(third)


def test_threads_and_processes_that_give_up_leave_each_turn_to_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CROWD, str(tmp_path / "queue"), str(tmp_path / "witness"), "2"]
    crowds = [ForkedPopen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [crowd.communicate(timeout=60)[0] for crowd in crowds]
    assert [crowd.returncode for crowd in crowds] == [0, 0, 0]
    assert all(int(turns) > 0 for turns in printed)


def test_waiters_that_time_out_leave_no_files(tmp_path: Path) -> None:
    path = tmp_path / "database-writers"
    queue = WriterQueue(str(tmp_path / "database"))
    path.touch()
    with open(path, "rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for _ in range(20):
            with pytest.raises(OperationalError), queue.turn(0.002):
                pass
        assert open_descriptors(path) == 1


def open_descriptors(path: Path) -> int:
    links = list(Path("/proc/self/fd").iterdir())
    return sum(link.exists() and link.resolve() == path for link in links)


def test_queue_that_cannot_be_opened_is_an_error_of_the_database(tmp_path: Path) -> None:
    queue = WriterQueue(str(tmp_path / "gone" / "queue"))
    with pytest.raises(OperationalError), queue.turn(1):
        pass
