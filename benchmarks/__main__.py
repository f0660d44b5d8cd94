"""Measures the service beside what could be written instead, and prints one table."""

import json
import sys
import time
from pathlib import Path

from benchmarks.command import measuring, parser, show
from benchmarks.sections import SECTIONS, measured
from benchmarks.table import HEAD, Row, cells


def main() -> None:
    own = parser("benchmarks", __doc__, SECTIONS)
    own.add_argument("--plots", type=Path, metavar="FOLDER", help="write the plots there")
    options = own.parse_args()
    began = time.monotonic()
    rows: list[Row] = []
    with measuring(options) as run:
        for name in options.only or SECTIONS:
            print(f"{time.monotonic() - began:4.0f} s  {name}", file=sys.stderr, flush=True)
            rows += measured(name, run)
    show(options, began, HEAD, [cells(row) for row in rows])
    if options.plots:
        options.plots.mkdir(exist_ok=True)
        for row in rows:
            for name, svg in row.plots.items():
                (options.plots / name).write_text(svg)
    if options.json:
        options.json.write_text(json.dumps([row.as_json() for row in rows], indent=1))


if __name__ == "__main__":
    main()
