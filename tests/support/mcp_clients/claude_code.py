"""Claude Code from its npm package, with a stub for its model."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from threading import Thread

from tests.support.mcp_clients.stub_model import StubModel
from tests.support.waiting import until

PROGRAM = "@anthropic-ai/claude-code-linux-x64/claude"
SERVER = "taskservice"
# A person's consent to use it is stored with its end.
MODEL_KEY = "sk-ant-stub-0123456789abcdefghij"
ROWS, COLUMNS = 50, 120
PRINT_SECONDS = 120
# A check follows every 20 ms.
CHECKS_PER_PRESS = 150
# Colours, movements of the cursor, titles.
CONTROLS = re.compile(r"\x1b(?:\[[0-9;?<>=]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")


class ClaudeCode:
    """A machine on which it is set up, with the endpoint in its configuration."""

    def __init__(self, node: Path, home: Path, model: StubModel, url: str, key: str) -> None:
        home.mkdir()
        self.home = home
        headers = {"Authorization": f"Bearer {key}"}
        server = {"type": "http", "url": f"{url}/mcp", "headers": headers}
        (home / "mcp.json").write_text(json.dumps({"mcpServers": {SERVER: server}}))
        (home / ".claude.json").write_text(json.dumps(self._consents()))
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TERM": "xterm-256color",
            "ANTHROPIC_BASE_URL": model.url,
            "ANTHROPIC_API_KEY": MODEL_KEY,
            # It talks to the model and to this server, and to nothing else.
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
        }
        self.command = [
            str(node / PROGRAM), "--mcp-config", str(home / "mcp.json"), "--strict-mcp-config",
            "--allowedTools", f"mcp__{SERVER}", "TaskStop",
        ]  # fmt: skip

    def _consents(self) -> dict[str, object]:
        """The questions at its first start."""
        project = {"hasTrustDialogAccepted": True, "hasCompletedProjectOnboarding": True}
        return {
            "hasCompletedOnboarding": True,
            "theme": "dark",
            "projects": {str(self.home): project},
            "customApiKeyResponses": {"approved": [MODEL_KEY[-20:]], "rejected": []},
        }

    def print_mode(self, prompt: str) -> str:
        """The output of `claude -p` for a prompt."""
        run = subprocess.run(
            [*self.command, "-p", prompt], env=self.environment, cwd=self.home,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PRINT_SECONDS,
            check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def terminal(self, *options: str) -> "ClaudeTerminal":
        """It runs on a terminal, in its mode for screen readers, which is plain text."""
        return ClaudeTerminal([*self.command, "--ax-screen-reader", *options], self)


class ClaudeTerminal:
    """A terminal where Claude Code runs while `with` lasts."""

    def __init__(self, command: Sequence[str], machine: ClaudeCode) -> None:
        self._ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            command, env=machine.environment, cwd=machine.home, stdin=its, stdout=its, stderr=its,
            start_new_session=True,
        )  # fmt: skip
        os.close(its)
        self._written = bytearray()
        self._read_up_to = 0
        self._thread = Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._ours, 65536):
                self._written += piece
        except OSError:  # no program has the terminal any more
            pass

    def __enter__(self) -> "ClaudeTerminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        os.close(self._ours)

    @property
    def shown(self) -> str:
        """All that it has shown so far, without colours and movements."""
        return CONTROLS.sub("", self._written.decode(errors="replace")).replace("\r", "")

    def until_it_shows(self, text: str) -> None:
        """Wait until it shows a text that it had not shown when this was last called."""
        self._until(lambda: self._find(text), text)

    def press(self, keys: str, shows: str) -> None:
        """Press keys until it shows a text: keys are lost while it draws."""
        times = count()

        def position() -> int:
            if next(times) % CHECKS_PER_PRESS == 0:
                os.write(self._ours, keys.encode())
            return self._find(shows)

        self._until(position, shows)

    def _until(self, position: Callable[[], int], text: str) -> None:
        try:
            self._read_up_to = until(position)
        except AssertionError:
            raise AssertionError(f"It does not show {text!r}:\n{self.shown}") from None

    def _find(self, text: str) -> int:
        """Where a new text ends; 0 if it is not there."""
        begins = self.shown.find(text, self._read_up_to)
        return 0 if begins < 0 else begins + len(text)
