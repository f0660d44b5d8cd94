"""The structure: a module imports only from those above it, and views stay views."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from taskservice.cli.commands import CLIENT_COMMANDS
from tests.support.documents import ROOT, table
from tests.support.packages import dependencies

PACKAGE = ROOT / "taskservice"
DATABASE_LIBRARIES = ("sqlalchemy", "flask_sqlalchemy", "sqlite3", "pysqlite3", "psycopg")
# Row type -> a column.
ROW_TYPES = {
    "AgentRow": "late_since",
    "EndedTaskRow": "finished_at",
    "HookRow": "format",
    "KeyRow": "digest",
    "LinkRow": "expires_at",
    "QuestionRow": "asked_at",
    "TaskRow": "finished_at",
    "UserRow": "created_at",
}
# What views import of `database/`: the time and the types of rows.
ALLOWED_IN_VIEWS = {
    "taskservice.database.clock",
    *(f"taskservice.database.rows.{name}" for name in ROW_TYPES),
    "taskservice.database.types.AnyRow",
}


def order() -> list[str]:
    """The packages and modules in the order of docs/contributing/architecture.md, top to bottom."""
    cells = [row[0] for row in table("docs/contributing/architecture.md", "## Packages")]
    return [name for cell in cells for name in re.findall(r"`(\w+)(?:\.py|/)`", cell)]


def top(module: str) -> str | None:
    """`taskservice.services.tasks` -> `services`; None for what is not ours."""
    parts = module.split(".")
    if parts[0] != "taskservice":
        return None
    return parts[1] if len(parts) > 1 else "__init__"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> list[str]:
    return list(imported(tree(path)))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in names if is_module(name)]
            # A package's own module counts only where one of its names is imported.
            yield from modules
            if len(modules) < len(names):
                yield node.module


def test_modules_import_only_from_those_above() -> None:
    rank = {name: place for place, name in enumerate(order())}
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        folder = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if folder == "__main__":
            continue
        for module in imports(path):
            other = top(module)
            if other in rank and other != folder and rank[other] > rank[folder]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_table_of_packages_is_complete() -> None:
    there = {path.stem for path in PACKAGE.iterdir()
             if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")}  # fmt: skip
    # Not each clone was built.
    assert set(order()) == (there | {"_version"}) - {"__main__", "help"}


def test_there_are_no_circular_imports() -> None:
    """Inside the packages either: in some order each module comes after the modules it imports."""
    files = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    left = {
        name: {used for used in imports(path) if used in files} - {name}
        for name, path in files.items()
    }
    while ready := [name for name, used in left.items() if not used & left.keys()]:
        for name in ready:
            del left[name]
    assert left == {}


def test_packages_are_doors() -> None:
    """What a package does is in modules that are named for it."""
    defined = {
        f"{path.parent.relative_to(ROOT)}: {node.name}"
        for path in PACKAGE.rglob("__init__.py")
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "init_app"
    }
    assert defined == set()


def test_agents_side_reaches_only_its_own_dependencies() -> None:
    """Also by imports inside of functions."""
    files = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    waiting = ["taskservice.cli", "taskservice.client", *CLIENT_COMMANDS.values()]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in files and name not in reached:
            # Its packages are imported with it.
            waiting += [*imports(files[name]), name.rpartition(".")[0]]
        reached.add(name)
    packages = {name.split(".")[0] for name in reached - {""}} - {"taskservice"}
    assert packages - sys.stdlib_module_names == set(dependencies())


def forbidden_in_views(source: str) -> list[str]:
    """The names that a view imports and that could query or commit."""
    imported_names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported_names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported_names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [
        name
        for name in imported_names
        if name.startswith((*DATABASE_LIBRARIES, "taskservice.database"))
        and name not in ALLOWED_IN_VIEWS
    ]


def test_views_neither_query_nor_commit() -> None:
    names_of = {
        str(path.relative_to(ROOT)): forbidden_in_views(path.read_text())
        for folder in ("api", "mcp", "dashboard")
        for path in (PACKAGE / folder).rglob("*.py")
    }
    assert len(names_of) > 20
    assert {path: names for path, names in names_of.items() if names} == {}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from sqlalchemy import select", "sqlalchemy.select"),
        ("import sqlalchemy as sa", "sqlalchemy"),
        ("from sqlalchemy.orm import Session", "sqlalchemy.orm.Session"),
        ("from flask_sqlalchemy import SQLAlchemy", "flask_sqlalchemy.SQLAlchemy"),
        ("import sqlite3", "sqlite3"),
        ("from taskservice import database", "taskservice.database"),
        ("from taskservice.database.transactions import reading",
         "taskservice.database.transactions.reading"),
        ("from taskservice.database import transactions", "taskservice.database.transactions"),
        ("from taskservice.database.types import AnyRow, db", "taskservice.database.types.db"),
        ("from taskservice.database.models import Task", "taskservice.database.models.Task"),
    ],
)  # fmt: skip
def test_view_that_queries_is_found(line: str, name: str) -> None:
    source = f"def show():\n    {line}\n    from taskservice.database.rows import TaskRow\n"
    assert forbidden_in_views(source) == [name]


def test_type_checker_reports_a_misspelt_column(tmp_path: Path) -> None:
    file = tmp_path / "columns.py"
    lines = [f"def read_{name}(row: rows.{name}) -> object: return row.{column}, row.{column}x"
             for name, column in ROW_TYPES.items()]  # fmt: skip
    file.write_text("\n".join(["from taskservice.database import rows", *lines]))
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(file)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = re.findall(r'error: "(\w+)" has no attribute "(\w+)"', checked.stdout)
    assert errors == [(name, f"{column}x") for name, column in ROW_TYPES.items()], checked.stderr


def test_every_module_docstring_is_one_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        docstring = ast.get_docstring(tree(path))
        assert docstring, path
        assert len(docstring.splitlines()) == 1, path


def test_tests_import_no_other_test_module() -> None:
    modules = re.compile(r"^\s*(?:from|import) tests\.(?!support\.|support )(\S+)", re.MULTILINE)
    modules_of = {
        str(path.relative_to(ROOT)): modules.findall(path.read_text())
        for path in (ROOT / "tests").rglob("*.py")
    }
    assert {path: names for path, names in modules_of.items() if names} == {}


def test_each_folder_of_tests_has_one_target_and_ci_runs_each_target() -> None:
    text = (ROOT / "Makefile").read_text()
    rules = dict(re.findall(r"^(test[a-z-]*):.*\n((?:\t.*\n)+)", text, re.MULTILINE))
    # All directories at once, whatever their names are.
    all_folders = rules.pop("test-all")
    assert all_folders.endswith(" $(sort $(dir $(wildcard tests/*/test_*.py)))\n")
    commands = "".join(rules.values())
    files = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]
    folders = {str(path.parent) for path in files} - {"tests"}
    assert Counter(re.findall(r"\btests/\S+", commands)) == Counter(folders)
    # The directory alone says what runs; without one it is what plain `pytest` runs.
    assert not re.search(r"pytest .*( -m| -k|--ignore|--deselect)", commands)
    assert "\ntestpaths = tests/test_*.py\n" in (ROOT / "setup.cfg").read_text()
    for file, targets in (
        (".ci/run", {"test", "test-all"}),
        (".github/workflows/ci.yml", set(rules)),
    ):
        run = re.findall(r"\btest(?:-[a-z]+)?\b", (ROOT / file).read_text())
        assert targets <= set(run), file


def test_each_test_that_ci_leaves_to_the_night_is_there() -> None:
    for line in (ROOT / ".ci" / "by-night").read_text().splitlines():
        option, path, *name = re.split("=|::", line)
        assert option == "--deselect"
        functions = re.findall(r"^def (test_\w+)", (ROOT / path).read_text(), re.MULTILINE)
        assert {test.partition("[")[0] for test in name} <= set(functions), line


# Documented in spite of their underscore: of marshmallow, of named tuples, of rows, of os.
DOCUMENTED = {"_serialize", "_deserialize", "_asdict", "_mapping", "_replace", "_exit"}


def private_names(trees: list[ast.Module]) -> set[str]:
    """What the code uses of other libraries that begins with an underscore."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    defined, used, declared = set[str](), set[str](), set[str]()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Attribute):
            (defined if isinstance(node.ctx, ast.Store) else used).add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("taskservice"):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            # Without a value it belongs to another class, and is declared for the type checker
            # only.
            (defined if node.value else declared).add(node.target.id)
    return {name for name in used - defined | declared if re.match(r"_[a-z]", name)}


def overridden_names() -> set[str]:
    """The private methods of other libraries that one of our classes replaces."""
    overridden = set()
    for path in PACKAGE.rglob("*.py"):
        if "alembic" in path.parts or path.stem in ("__main__", "gunicorn_config"):
            continue
        module = importlib.import_module(module_name(path))
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__:
                foreign = [base for base in kind.__mro__[1:-1] if top(base.__module__) is None]
                methods = {name for name, value in vars(kind).items() if is_function(value)}
                overridden |= {name for base in foreign for name in methods & vars(base).keys()}
    return {name for name in overridden if re.match(r"_[a-z]", name)}


def is_function(value: object) -> bool:
    """Whether it is a function in our source: libraries add some to their subclasses."""
    code = getattr(value, "__code__", None)
    return code is not None and str(PACKAGE) in code.co_filename


def test_no_private_parts_of_other_libraries_are_used() -> None:
    trees = [tree(path) for path in PACKAGE.rglob("*.py")]
    assert (private_names(trees) | overridden_names()) - DOCUMENTED == set()


def test_private_part_is_found() -> None:
    source = "from re import _parser\nrequest._get_current_object()\nself._own = self._own"
    source += "\nclass Own(Foreign):\n    _flag: bool\nown._flag = False"
    assert private_names([ast.parse(source)]) == {"_parser", "_get_current_object", "_flag"}
