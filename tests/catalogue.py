"""Writes the tables of docs/reliability.md, from what the last runs of the tests kept.

Rows of tests that did not run stay. With `--check` none does, as after a run of all tests: a fault
that is in only one of the document and this run is an error. What happened, and how often it was
tried, may differ where two requests race.
"""

import sys
from difflib import unified_diff

from tests.support.catalogue import kept_rows
from tests.support.documents import ROOT
from tests.support.reliability import built, faults, place, read, written

DOCUMENT = ROOT / "docs" / "reliability.md"


def main() -> int:
    before = DOCUMENT.read_text()
    new = built([row for row in kept_rows(ROOT) if place(row.test)])
    is_check = "--check" in sys.argv[1:]
    after = written(before, new if is_check else {**read(before), **new})
    DOCUMENT.write_text(after)
    name = str(DOCUMENT.relative_to(ROOT))
    sys.stdout.writelines(
        unified_diff(before.splitlines(True), after.splitlines(True), name, "this run", n=0)
    )
    if is_check and faults(before) != faults(after):
        print(f"{name} has other faults than the tests tried; the new one is written.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
