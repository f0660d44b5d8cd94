"""Measures the service and what could be written instead, and prints one table."""

import json
import sys
import time
from dataclasses import asdict

from benchmarks.command import measuring, parser, show
from benchmarks.sections import SECTIONS, measured
from benchmarks.table import HEAD, Row, cells


def main() -> None:
    options = parser("benchmarks", __doc__, SECTIONS).parse_args()
    began = time.monotonic()
    rows: list[Row] = []
    with measuring(options) as run:
        for name in options.only or SECTIONS:
            print(f"{time.monotonic() - began:4.0f} s  {name}", file=sys.stderr, flush=True)
            rows += measured(name, run)
    show(began, HEAD, [cells(row) for row in rows])
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
