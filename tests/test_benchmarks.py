"""The benchmarks: each still measures what it says, however short it runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sections import SECTIONS
from tests.support.documents import ROOT, table

QUICK = ["--seconds", "0.05", "--rounds", "1", "--scale", "0.001"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("section", SECTIONS)
def test_every_row_of_the_table_can_be_measured(tmp_path: Path, section: str) -> None:
    written = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks", *QUICK, "--only", section]
    result = subprocess.run(
        [*command, "--json", str(written), "--plots", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=850, check=True,
    )  # fmt: skip
    rows = json.loads(written.read_text())
    assert len(rows) == len(SECTIONS[section].goals)
    if section == "slow-disk" and shutil.which("cc") is None:
        assert "no C compiler" in rows[0]["left_out"]
        return
    for row in rows:
        assert row["left_out"] == ""
        assert row["ours"] > 0
        assert all(ratio > 0 for ratio in row["ratios"].values())
        assert row["goal"]["path"] in result.stdout
    if section == "growth":
        for name in ("tasks.svg", "lines.svg"):
            assert (tmp_path / name).read_text().startswith("<svg")


def test_document_names_every_section() -> None:
    rows = table("docs/performance.md", "## What is measured")
    assert [row[0].strip("`") for row in rows] == list(SECTIONS)
