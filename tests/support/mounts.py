"""Disks that are small, full or read-only, where the machine lets the tests mount them."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tests.support.requirements import needs


def mount(*arguments: str) -> None:
    if subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode:
        needs("right to mount", "run the tests as root in a container that may mount")


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def small_disk(folder: Path, size: str = "2m") -> Iterator[Path]:
    """This directory, mounted as a disk of that size in memory."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"mode=700,size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        unmount(folder)


@contextmanager
def failing_disk(folder: Path) -> Iterator[Callable[[], None]]:
    """This directory on a separate disk; calling the result makes it read-only, like a broken disk.

    Files may be open for writing then, which a plain remount would refuse.
    """
    if shutil.which("mkfs.ext4") is None:
        needs("mkfs.ext4", "install the package e2fsprogs")
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(8 << 20)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-E", "root_owner", str(image)], check=True)
    mount("-o", "loop", str(image), str(folder))
    try:
        yield lambda: mount("-o", "remount,abort", str(folder))
    finally:
        unmount(folder)


def fill(folder: Path) -> Path:
    """Fill its disk to the last byte; the file to remove when there should be space again."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    assert os.statvfs(folder).f_bavail == 0
    return filler


def empty_log(data: Path) -> None:
    """Empty SQLite's log, so that the next write needs space."""
    with closing(sqlite3.connect(data / "taskservice.db")) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


def failing_writes(folder: Path) -> dict[str, str]:
    """The environment of a service whose writes or syncs fail while a file exists.

    The files are `writes` and `syncs` in the directory.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        needs("C compiler", "install the package gcc")
    library = folder / "failing_writes.so"
    source = Path(__file__).with_name("failing_writes.c")
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return {
        "LD_PRELOAD": str(library),
        "FAILING_WRITES": str(folder / "writes"),
        "FAILING_SYNCS": str(folder / "syncs"),
    }


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The directory, as if it were on a read-only disk."""
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        unmount(folder)
