"""The catalogue of faults: its rows come from tests that passed, and from nowhere else."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.catalogue import CLASSES, Row, kept_rows, steady
from tests.support.documents import DOCUMENTS, ROOT
from tests.support.reliability import built, faults, read, written

TESTS = """
import pytest

from tests.support.catalogue import answered, case, fault, happened


@fault("HTTP", "a bad {part}", "400")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("part", ["head", "body"])
def test_parts(kind, part):
    answered(400, "unreadable")
    answered(200)


@fault("JSON", "{case}", "nothing happens")
def test_cases():
    for name in ("one", "two"):
        with case(name):
            happened(f"{name} happened")
    happened("all is well")


@fault("storage", "a failure", "none")
def test_fails():
    happened("something")
    assert False


@fault("process", "nothing is noted", "an error")
def test_notes_nothing():
    pass
"""
PLUGIN = """
from tests.support.catalogue import Catalogue


def pytest_configure(config):
    config.addinivalue_line("markers", "fault: a fault")
    config.pluginmanager.register(Catalogue(config))
"""


def run(folder: Path, *arguments: str) -> str:
    """Run tests as `make` does, in this folder."""
    command = [sys.executable, "-m", "pytest", "--rootdir=.", "-p", "no:cacheprovider", *arguments]
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=plugins, capture_output=True, text=True, timeout=100, check=False
    ).stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(PLUGIN)
    (tmp_path / "test_faults.py").write_text(TESTS)
    return tmp_path


def test_rows_are_what_tests_saw_that_passed(folder: Path) -> None:
    printed = run(folder, "-p", "xdist.plugin", "-n", "2")
    assert "nothing was noted of the fault" in printed
    assert "2 failed, 5 passed" in printed
    lines = built(kept_rows(folder))
    end = "[test_faults.py::test_parts](../test_faults.py) |"
    assert lines["test_faults.py::test_parts"] == {
        "HTTP": {
            f"| a bad head | 400 | 400 `unreadable` | 1 | both | {end}",
            f"| a bad body | 400 | 400 `unreadable` | 1 | both | {end}",
        }
    }
    end = "[test_faults.py::test_cases](../test_faults.py) |"
    assert lines["test_faults.py::test_cases"] == {
        "JSON": {
            f"| one | nothing happens | one happened; all is well | 1 |  | {end}",
            f"| two | nothing happens | two happened; all is well | 1 |  | {end}",
        }
    }
    assert len(lines) == 2


def test_row_goes_when_its_test_fails_and_stays_when_that_does_not_run(folder: Path) -> None:
    run(folder)
    file = folder / "test_faults.py"
    file.write_text(file.read_text().replace('happened("all is well")', "raise ValueError"))
    run(folder, "-k", "fails")
    assert {row.test for row in kept_rows(folder)} == {
        "test_faults.py::test_parts", "test_faults.py::test_cases",
    }  # fmt: skip
    run(folder, "-k", "cases")
    assert {row.test for row in kept_rows(folder)} == {"test_faults.py::test_parts"}


def test_document_reads_as_it_was_written() -> None:
    here = "tests/test_access.py::test_key_in_the_query_does_not_count"
    row = Row("storage", "a | b <c>\n`d`", "p", ["x", "y"], "SQLite", "", 2, here)
    gone = Row("storage", "f", "p", ["h"], "", "", 1, "tests/test_access.py::test_that_is_gone")
    document = written("# Title\n", built([row, gone]))
    assert r"| a \| b &lt;c> `d` | p | x; y | 2 | SQLite |" in document
    assert "test_that_is_gone" in document
    assert read(document) == built([row])
    assert written(document, read(document)) == written("# Title\n", built([row]))


def test_document_has_the_same_faults_where_only_what_happened_differs() -> None:
    here = "tests/test_access.py::test_key_in_the_query_does_not_count"
    row = Row("storage", "a", "p", ["x"], "SQLite", "", 2, here)
    other = Row("storage", "a", "p", ["y"], "SQLite", "", 1, here)
    more = Row("storage", "b", "p", ["x"], "SQLite", "", 2, here)
    one, two, three = (written("", built(rows)) for rows in ([row], [other], [row, more]))
    assert one != two
    assert faults(one) == faults(two) != faults(three)


def test_text_of_a_failure_is_the_same_in_each_run() -> None:
    text = "/tmp/a-1/data/x.db of 01a216a7-c830-724c-bcad-01ab0fc06783 at http://127.0.0.1:4711/x"
    assert steady(text) == "x.db of ID at http://127.0.0.1/x"


def test_each_row_of_the_document_has_a_marked_test() -> None:
    document = DOCUMENTS["docs/reliability.md"]
    lines = read(document)
    assert written(document, lines) == document
    assert sum(len(found) for of_test in lines.values() for found in of_test.values()) > 150
    assert {kind for of_test in lines.values() for kind in of_test} == set(CLASSES)
