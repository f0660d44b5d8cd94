"""Reads README.md and docs/: blocks, tables and links; and a terminal for sessions."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Every document of the repository, by its path.
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
}
# Those on the site, as docs/conf.py includes them; the others are for contributors.
SITE = {
    name
    for name in DOCUMENTS
    if name.startswith(("docs/", "examples/")) or name in ("CHANGELOG.md", "SECURITY.md")
} - {name for name in DOCUMENTS if name.startswith("docs/contributing/")}

_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_WORDS = r"[a-z]+(?:[ -][a-z]+)*"
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def blocks(name: str, mark: str) -> list[str]:
    """The code blocks of a document that follow this mark, in their order."""
    pattern = rf"<!-- {re.escape(mark)} -->\n```\w+\n(.*?)```"
    return re.findall(pattern, DOCUMENTS[name], re.DOTALL)


def command_blocks(name: str) -> list[tuple[str, str]]:
    """The mark, or an empty text, and the text of each block for a shell that nobody generates."""
    text = re.sub(r"<!-- generated -->.*?<!-- end", "", DOCUMENTS[name], flags=re.DOTALL)
    pattern = r"(?:<!-- ([^>]*) -->\n)?^ *```sh\n(.*?)^ *```$"
    return re.findall(pattern, text, re.DOTALL | re.MULTILINE)


def block_in(folder: str, mark: str) -> str:
    """The one code block in the documents of a directory that follows this mark."""
    names = [name for name in DOCUMENTS if name.startswith(f"docs/{folder}/")]
    (block,) = [block for name in names for block in blocks(name, mark)]
    return block


def section(name: str, heading: str) -> str:
    """The text under a heading, up to the next one of its level or a higher one."""
    level = len(heading) - len(heading.lstrip("#"))
    _, _, rest = f"\n{DOCUMENTS[name]}".partition(f"\n{heading}\n")
    assert rest, f"{name} has no {heading}"
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(name: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head."""
    lines = section(name, heading).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def code_lines(name: str) -> list[str]:
    """The lines of all code blocks of a document."""
    code_blocks = _FENCE.findall(DOCUMENTS[name])
    return [line for block in code_blocks for line in block.splitlines()[1:-1]]


def prose(name: str) -> str:
    """A document without its code blocks."""
    return _FENCE.sub("", DOCUMENTS[name])


def command_lines(name: str) -> list[str]:
    """The words of each `taskservice ...` in a document, up to its arguments."""
    code = "".join(_FENCE.findall(DOCUMENTS[name]))
    shown = re.findall(rf"^taskservice ({_WORDS})", code, re.MULTILINE)
    return shown + re.findall(rf"`taskservice ({_WORDS})", prose(name))


def links(name: str) -> list[str]:
    return _LINK.findall(prose(name))


def linked(name: str) -> set[str]:
    """The documents that a document links to, by their paths in the repository."""
    folder = (ROOT / name).parent
    paths = (link.partition("#")[0] for link in links(name) if "://" not in link)
    targets = {(folder / path).resolve() for path in paths if path.endswith(".md")}
    return {str(path.relative_to(ROOT)) for path in targets}


def anchors(name: str) -> set[str]:
    """The anchors of a document, as forges derive them from the headings."""
    texts = (text.lower().replace("`", "") for text in _HEADING.findall(prose(name)))
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


class Terminal:
    """A shell into which blocks are typed, as by a person; ended by `with`."""

    def __init__(self, folder: Path) -> None:
        # A pipe, not a file: `tee /dev/stderr` would open the file again, and empty it.
        self._shell = subprocess.Popen(
            ["sh"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._printed = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._shell.stdout is not None
        with self._shell.stdout as out:
            while part := os.read(out.fileno(), 65536):
                self._printed += part

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        os.killpg(self._shell.pid, signal.SIGTERM)
        self._shell.wait(timeout=10)
        self._reader.join(timeout=10)

    def type(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(text.encode() + b"\n")
        self._shell.stdin.flush()

    @property
    def screen(self) -> str:
        return self._printed.decode(errors="ignore")

    def wait_for(self, text: str, seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        while text not in self.screen:
            assert time.monotonic() < until, self.screen
            time.sleep(0.05)

    def run(self, text: str, seconds: float = 90) -> str:
        """Type a block, wait until it is done, and return what it printed."""
        before, mark = len(self.screen), f"done {time.monotonic_ns()}"
        self.type(f"{text}\necho\necho {mark!r}")
        self.wait_for(mark, seconds)
        return self.screen[before:].replace(mark, "").strip()


def install_commands(folder: Path) -> Path:
    """A directory with `taskservice` and `python` as an installation has them, for the path."""
    folder.mkdir(parents=True)
    for name, command in (("taskservice", "-m taskservice"), ("python", "")):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n')
        path.chmod(0o755)
    return folder


def paths(name: str) -> list[str]:
    """Each `path/like.this` in the prose of a document."""
    return re.findall(r"`((?:[A-Za-z._][\w.-]*/)+[\w.-]*)`", prose(name))
