"""Files and folders that hold secrets, and that a power cut does not take away."""

import os
from pathlib import Path


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, where there is none."""
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
