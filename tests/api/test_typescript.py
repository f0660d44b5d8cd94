"""The types that a program in TypeScript gets from the OpenAPI document."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.marks import one_database
from tests.support.requirements import needs
from tests.support.service import Service

pytestmark = one_database

# The program, and package.json with the versions of the tools.
SOURCES = Path(__file__).parent / "typescript"

PRELUDE = """\
import type { components, webhooks } from "./taskservice.js";
type Schemas = components["schemas"];
type TaskEnded = webhooks["taskEnded"]["post"];
"""
# Mistake -> what a program with it does, and the compiler's code for the error.
MISTAKES = {
    "a fourth status": (
        'export const f = (task: Schemas["Task"]) => task.status === "done";',
        "TS2367",
    ),
    "a status that is set to a fourth one": (
        'export const f = (): Schemas["Task"]["status"] => "cancelled";',
        "TS2322",
    ),
    "a status forgotten": (
        'export function f(task: Schemas["Task"]): string {'
        ' switch (task.status) { case "running": return ""; case "complete": return ""; } }',
        "TS2366",
    ),
    "an error read before its status": (
        'export const f = (task: Schemas["Task"]) => task.error.message;',
        "TS18047",
    ),
    "an agent that nobody asked for": (
        'export const f = (task: Schemas["Task"]) => task.agent.name;',
        "TS18048",
    ),
    "a field that may be left out": (
        'export const f = (part: Schemas["PartialTask"]) => part.name.length;',
        "TS18048",
    ),
    "a part taken for a whole": (
        'export const f = (part: Schemas["PartialTask"]): Schemas["Task"] => part;',
        "TS2322",
    ),
    "health that nobody asked for": (
        'export const f = (agent: Schemas["Agent"]) => agent.health.recent;',
        "TS18048",
    ),
    "a field that a task lacks": (
        'export const f = (task: Schemas["Task"]) => task.state;',
        "TS2339",
    ),
    "a header that a webhook lacks": (
        'export const f = (headers: TaskEnded["parameters"]["header"]) => headers["signature"];',
        "TS7053",
    ),
}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the TypeScript compiler and openapi-typescript, from their npm packages."""
    if not (shutil.which("node") and shutil.which("npm")):
        needs("Node.js with npm", "install the packages nodejs and npm")
    folder = tmp_path_factory.mktemp("typescript")
    shutil.copy(SOURCES / "package.json", folder)
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retry-mintimeout=1000"]
    installed = run(folder, "npm", "install", *options)
    if installed.returncode != 0:
        needs("npm registry", (installed.stderr + installed.stdout)[:300])
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture
def folder(service: Service, tools: Path) -> Path:
    """The same directory with the types of the running service."""
    document = f"{service.url}/openapi.json"
    made = run(tools, "node_modules/.bin/openapi-typescript", document, "-o", "taskservice.ts")
    assert made.returncode == 0, made.stdout + made.stderr
    return tools


def errors(folder: Path, *files: str) -> dict[str, list[str]]:
    """File -> the codes of the compiler's errors in it."""
    options = ["--strict", "--noEmit", "--target", "es2022", "--module", "nodenext"]
    compiled = run(folder, "node_modules/.bin/tsc", *options, *files)
    print(compiled.stdout)
    codes: dict[str, list[str]] = {}
    for file, code in re.findall(r"^(\S+)\(\d+,\d+\): error (TS\d+)", compiled.stdout, re.M):
        codes.setdefault(file, []).append(code)
    assert bool(codes) == (compiled.returncode != 0), compiled.stdout + compiled.stderr
    return codes


def test_program_with_the_generated_types_compiles(folder: Path) -> None:
    shutil.copy(SOURCES / "program.ts", folder)
    assert errors(folder, "program.ts") == {}


def test_compiler_finds_mistakes_by_the_generated_types(folder: Path) -> None:
    files = {name: f"{name.replace(' ', '_')}.ts" for name in MISTAKES}
    for name, (code, _) in MISTAKES.items():
        (folder / files[name]).write_text(PRELUDE + code)
    expected = {files[name]: [error] for name, (_, error) in MISTAKES.items()}
    assert errors(folder, *files.values()) == expected
