"""The benchmarks: each still measures what it says, however short it runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import plan, scaling
from benchmarks.sections import SECTIONS
from tests.support.documents import ROOT, table

QUICK = ["--seconds", "0.05", "--rounds", "1", "--scale", "0.001"]
# The sections of `make bench`, and `scaling`; most of them share servers, load and tables.
BENCHMARKS = os.environ.get("BENCHMARKS", " ".join([*SECTIONS, "scaling"])).split()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("section", [name for name in BENCHMARKS if name != "scaling"])
def test_every_row_of_the_table_can_be_measured(tmp_path: Path, section: str) -> None:
    written = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks", *QUICK, "--only", section]
    result = subprocess.run(
        [*command, "--json", str(written)],
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
        assert row["ratio"] > 0 or row["beside"] != row["beside"]
        assert row["goal"]["path"] in result.stdout


@pytest.mark.timeout(900)
@pytest.mark.skipif("scaling" not in BENCHMARKS, reason="BENCHMARKS leaves it out")
def test_all_figures_of_both_databases_can_be_measured(tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", *QUICK, "--json", str(written)],
        cwd=ROOT, capture_output=True, text=True, timeout=850, check=True,
    )  # fmt: skip
    figures = json.loads(written.read_text())
    assert figures["left_out"] == {}
    for path in scaling.WAITS:
        sizes = 1 if path == scaling.LIST else len(scaling.SIZES)
        for kind in scaling.KINDS:
            waits = figures["waits"][path][kind]
            assert len(waits) == sizes
            assert all(wait > 0 for wait in waits.values())
        assert path in result.stdout
    for name in (*scaling.GOALS, plan.TASK_BYTES, plan.LINE_BYTES, plan.BACKUP):
        for kind in scaling.KINDS:
            figure, _ = figures["others"][name][kind]
            assert figure > 0
        assert name in result.stdout
    for kind in scaling.KINDS:
        assert figures["sizes"]["tasks_by_creation"][kind] > 0
    for line in (plan.HEAD[0], "fully busy processes of the service", "`pg_dump` of all tasks"):
        assert line in result.stdout


def test_document_names_every_section() -> None:
    rows = table("benchmarks/README.md", "## What is measured")
    assert [row[0].strip("`") for row in rows] == list(SECTIONS)
