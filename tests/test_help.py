"""`--help` of every command, durations, and the completion of a shell."""

import re
import shlex
import subprocess
from itertools import dropwhile, takewhile
from pathlib import Path

import click
import pytest

from taskservice import cli, config
from taskservice.cli.mcp_config import INTRODUCTION
from taskservice.cli.options import Duration
from taskservice.runner import saved_run
from tests.support.commands import all_commands, run
from tests.support.documents import DOCUMENTS, blocks, code_lines, install_commands, table
from tests.support.requirements import needs


def test_help_has_two_groups_as_the_documents_have(tmp_path: Path) -> None:
    shown = run(tmp_path, "--help").stdout
    _, agents_side, server = re.split(r"(?:Client|Server) commands.*:\n", shown)
    for text, pages in ((agents_side, ("cli", "cli-task")), (server, ("cli-server",))):
        names = re.findall(r"^  ([\w-]+) ", text, re.MULTILINE)
        rows = [row for page in pages for row in table(f"docs/reference/{page}.md", "## Commands")]
        listed = "".join(row[0] for row in rows)
        assert set(names) == set(re.findall(r"`taskservice ([\w-]+)", listed))
        assert len(names) == len(set(names))


def test_groups_without_a_command_print_their_help(tmp_path: Path) -> None:
    for command in ((), ("task",), ("db",)):
        printed = run(tmp_path, *command)
        asked = run(tmp_path, *command, "--help")
        assert (printed.stdout + printed.stderr).rstrip() == asked.stdout.rstrip()


def test_help_names_no_file_that_pip_does_not_install() -> None:
    helps = [cli.main.get_help(click.Context(cli.main))]
    helps += [command.get_help(click.Context(command)) for command in all_commands().values()]
    assert not re.findall(r"\S*docs/\S*|\S+\.md\b", "\n".join([*helps, INTRODUCTION]))


def test_help_of_serve_has_each_setting_with_its_default() -> None:
    serve = all_commands()["serve"]
    lines = [line.strip() for line in serve.get_help(click.Context(serve)).splitlines()]
    assert {f"{name}={default}" for name, default, _ in config.documented()} <= set(lines)


def test_help_of_run_names_all_that_a_refused_start_leaves_out() -> None:
    text = " ".join((all_commands()["run"].help or "").split())
    _, _, rest = text.partition("If the service refuses the ")
    named, _, _ = rest.partition(", the task is started without this value")
    words = {"parentId": "parent", "claimedAt": "start time"}
    left_out = {words.get(name, name) for name in saved_run.OPTIONAL}
    assert set(re.split(", | or ", named)) == left_out


SKILL = "examples/SKILL.md"
# The words of a shell before a command.
SETTING = re.compile(r"[A-Z_]+=\S*$")


@pytest.mark.parametrize("words", all_commands())
def test_help_has_examples_that_the_command_takes(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("input.json", "schema.json", "token.txt"):
        Path(name).write_text("{}")
    command = all_commands()[words]
    context = click.Context(command, info_name=f"taskservice {words}")
    _, _, examples = command.get_help(context).partition("Example")
    lines = examples.splitlines()[1:]
    assert lines, "it has no example"
    for line in lines:
        first, *_ = re.split(r" (?:\||&&|<|>) ", line.strip())
        arguments = shlex.split(first, comments=True)
        while SETTING.match(arguments[0]):
            del arguments[0]
        assert arguments[: 1 + len(words.split())] == ["taskservice", *words.split()]
        command.make_context(words, arguments[1 + len(words.split()) :]).close()


def test_skill_has_commands_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command_lines = list(filter(None, map(words_of_command, code_lines(SKILL))))
    taught = set()
    for words in command_lines:
        name = " ".join(words[: 1 if words[0] in all_commands() else 2])
        all_commands()[name].make_context(name, words[len(name.split()) :])
        taught.add(name)
    assert {"run", "progress", "ask", "task follow", "task answer"} <= taught


def words_of_command(line: str) -> list[str]:
    """What follows `taskservice` in a line of a shell, up to the next operator."""
    tokens = shlex.shlex(line, posix=True, punctuation_chars=True)
    tokens.whitespace_split = True
    after = dropwhile(lambda word: word != "taskservice", tokens)
    return list(takewhile(lambda word: not set(word) <= set("();<>|&"), after))[1:]


def test_skill_begins_as_coding_agents_read_it() -> None:
    front, _, _ = DOCUMENTS[SKILL].removeprefix("---\n").partition("\n---\n")
    fields = dict(line.split(": ", 1) for line in front.splitlines())
    assert fields.keys() == {"name", "description"}
    assert re.fullmatch(r"[a-z0-9-]{1,64}", fields["name"])
    assert len(fields["description"]) <= 1024


# --- durations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5_400), ("90d", 7_776_000),
        ("1d2h3m4s", 93_784), ("0h5m", 300),
    ],
)  # fmt: skip
def test_duration_is_seconds_or_numbers_with_units(text: str, seconds: int) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "1.5h", "-1", "30m1h", "1h1h", "5 m", "1h30", "5M", "٣", "1" * 5000]
)
def test_other_durations_are_refused_with_what_is_right(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"such as 90 \(seconds\), 5m"):
        Duration().convert(text, None, None)


def test_duration_out_of_bounds_says_the_bound() -> None:
    duration = Duration(minimum=1, maximum=366 * 86_400)
    with pytest.raises(click.BadParameter, match="must be at least 1s"):
        duration.convert("0", None, None)
    with pytest.raises(click.BadParameter, match="must be at most 366d"):
        duration.convert("367d", None, None)


def test_key_expires_after_a_duration(tmp_path: Path) -> None:
    run(tmp_path, "user", "add", "alice")
    for text in ("90d", "1h30m", "3600s"):
        added = run(tmp_path, "key", "add", "alice", "--name", text, "--expires", text)
        assert added.returncode == 0
    # Days may be meant.
    bare = run(tmp_path, "key", "add", "alice", "--name", "x", "--expires", "90")
    assert (bare.returncode, "needs a unit, such as 90d" in bare.stderr) == (2, True)
    refused = run(tmp_path, "key", "add", "alice", "--name", "x", "--expires", "tomorrow")
    assert refused.returncode == 2
    assert "'tomorrow' must be a duration such as" in refused.stderr


# --- completion --------------------------------------------------------------------------


def test_documented_completion_completes(tmp_path: Path) -> None:
    bash = "/bin/bash"
    if not Path(bash).exists():
        needs("bash", "install the package bash")
    folder = install_commands(tmp_path / "bin")
    completed = (
        'COMP_WORDS=(taskservice task {}) COMP_CWORD=2 COMPREPLY=(); {}; echo "${{COMPREPLY[@]}}"'
    )
    (documented,) = blocks("docs/reference/cli.md", "completion: bash")
    script = f"PATH={folder}:$PATH\n{documented}\n" + "\n".join(
        completed.format(begun, "_taskservice_completion taskservice") for begun in ("re", "lis")
    )
    shown = subprocess.run(
        [bash, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert (shown.stdout, shown.stderr) == ("rerun\nlist\n", "")
