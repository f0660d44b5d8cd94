"""The tables of docs/reliability.md: a line for each fault that the tests tried."""

import re
from collections import defaultdict
from functools import cache
from pathlib import Path

from tests.support.catalogue import CLASSES, DATABASES, Row
from tests.support.documents import ROOT

BEGIN = "<!-- From here on the tests have written this. -->\n"
HEAD = "| fault | promised | happened | cases | database | test |\n|---|---|---|---|---|---|\n"
LONGEST = 160
# What stands before a marked test: the mark, and then no other definition.
_MARKED = re.compile(r"^@fault\((?:(?!^def )[\s\S])*\Z", re.MULTILINE)
_ANSWER = re.compile(r"\d{3}\b|exit code |error -|a result with")
_LINE = re.compile(r"^\|.*\[[^\]]*::(\w+)\]\(\.\./(\S+)\) \|$")

Lines = dict[str, dict[str, set[str]]]


def built(rows: list[Row]) -> Lines:
    """Test -> class -> lines of its table; the variants of one fault are one line."""
    groups = defaultdict[tuple[str, str, str, str], list[Row]](list)
    for row in rows:
        groups[row.test, row.kind, row.fault, row.promised].append(row)
    lines: Lines = defaultdict(lambda: defaultdict(set))
    for (test, kind, _, _), same in groups.items():
        lines[test][kind].add(_line(same))
    return lines


def _line(same: list[Row]) -> str:
    row = same[0]
    cases = {_without_database(each): each.cases for each in same}
    databases = {each.database for each in same} - {""}
    path, _, name = row.test.partition("::")
    happened = _joined([text for each in same for text in each.happened])
    cells = (
        row.fault, row.promised, happened, str(sum(cases.values())),
        "both" if len(databases) == len(DATABASES) else "".join(databases),
    )  # fmt: skip
    shown = " | ".join(_shown(cell) for cell in cells)
    return f"| {shown} | [{Path(path).name}::{name}](../{path}) |"


def _without_database(row: Row) -> str:
    """The variant of a row, where another database makes no other case."""
    return re.sub("sqlite|postgresql", "", row.variant) if row.database else row.variant


def _joined(texts: list[str]) -> str:
    """Each text once, answers first; of very many the first ones."""
    answers = sorted({text for text in texts if _ANSWER.match(text)})
    # An answer to HEAD has no code.
    answers = [each for each in answers if not any(more.startswith(f"{each} ") for more in answers)]
    others = dict.fromkeys(text for text in texts if not _ANSWER.match(text))
    different = [*answers, *others]
    fitting = [
        number
        for number in range(1, len(different) + 1)
        if len("; ".join(different[:number])) <= LONGEST
    ]
    shown = different[: max(fitting, default=1)]
    left = len(different) - len(shown)
    return "; ".join(shown) + (f"; and {left} more" if left else "")


def _shown(cell: str) -> str:
    text = "".join(each if each.isprintable() else " " for each in cell)
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def read(document: str) -> Lines:
    """The lines of a document's tables whose tests are still there and marked."""
    lines: Lines = defaultdict(lambda: defaultdict(set))
    kind = ""
    for line in document.partition(BEGIN)[2].splitlines():
        if line.startswith("## "):
            kind = next(each for each in CLASSES if _heading(each) == line)
        elif found := _LINE.match(line):
            test = f"{found[2]}::{found[1]}"
            if place(test):
                lines[test][kind].add(line)
    return lines


def faults(document: str) -> set[tuple[str, ...]]:
    """Test, class, fault and promise of each row."""
    return {
        (test, kind, *line.split(" | ")[:2])
        for test, found in read(document).items()
        for kind, lines in found.items()
        for line in lines
    }


def _heading(kind: str) -> str:
    return f"## {kind[0].upper()}{kind[1:]}"


@cache
def _source(path: str) -> str:
    file = ROOT / path
    return file.read_text() if file.exists() else ""


@cache
def place(test: str) -> int:
    """Where a test begins in its file; 0 if it is no longer there, or no longer marked."""
    path, _, name = test.partition("::")
    before, found, _ = _source(path).partition(f"\ndef {name}(")
    return len(before) if found and _MARKED.search(before) else 0


def written(document: str, lines: Lines) -> str:
    """The document with these lines, by class, and then in the order of the tests."""
    tests = sorted(lines, key=lambda test: (test.partition("::")[0], place(test)))
    tables = []
    for kind in CLASSES:
        found = [line for test in tests for line in sorted(lines[test].get(kind, ()))]
        tables.append(f"{_heading(kind)}\n\n{HEAD}" + "".join(f"{line}\n" for line in found))
    return document.partition(BEGIN)[0] + BEGIN + "\n" + "\n".join(tables)
