"""The benchmarks: each still measures what it says, however short it runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sections import SECTIONS
from tests.support.documents import ROOT, table

# Each takes a server or more, and some of them a database that is filled.
QUICK = ["--seconds", "0.05", "--rounds", "1", "--scale", "0.001"]


@pytest.mark.slow
def test_every_row_of_the_table_can_be_measured(tmp_path: Path) -> None:
    written = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks", *QUICK, "--json", str(written)]
    result = subprocess.run(
        [*command, "--plots", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=True,
    )  # fmt: skip
    rows = json.loads(written.read_text())
    left_out = {row["goal"]["path"]: row["left_out"] for row in rows if row["left_out"]}
    if shutil.which("cc") is None:
        assert "no C compiler" in left_out.pop("append a line, syncs of 2 ms")
    assert left_out == {}
    assert len(rows) == sum(len(section.goals) for section in SECTIONS.values())
    for row in rows:
        assert row["ours"] > 0, row
        assert all(ratio > 0 for ratio in row["ratios"].values())
        assert row["goal"]["path"] in result.stdout
    for name in ("tasks.svg", "lines.svg"):
        assert (tmp_path / name).read_text().startswith("<svg")


def test_document_names_every_section() -> None:
    rows = table("docs/performance.md", "## What is measured")
    assert [row[0].strip("`") for row in rows] == list(SECTIONS)
