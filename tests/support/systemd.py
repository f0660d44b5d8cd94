"""A directory that stands for `/`, and a `systemctl` for its services without systemd."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.support.documents import ROOT
from tests.support.waiting import has_ended, until


class Machine:
    """The units in a directory, with paths below it instead of a machine's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.units = root / "etc/systemd/system"

    def below_root(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/(?=opt/|var/lib/|etc/)", f"{self.root}/", text)

    def values(self, unit: str, name: str) -> list[str]:
        text = self.below_root((self.units / unit).read_text())
        return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)

    def environment(self, unit: str, **variables: str) -> dict[str, str]:
        """The environment of the unit's command, with the variables of the tests' interpreter."""
        lines = [word for line in self.values(unit, "Environment") for word in shlex.split(line)]
        (file,) = self.values(unit, "EnvironmentFile")
        assert file.startswith("-")
        if Path(file[1:]).exists():
            lines += re.findall(r"^(?!#).+=.*$", Path(file[1:]).read_text(), re.MULTILINE)
        settings = dict(line.split("=", 1) for line in lines)
        return {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)} | settings | variables

    def command(self, unit: str) -> list[str]:
        (command,) = self.values(unit, "ExecStart")
        return shlex.split(command)

    def run(self, unit: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(unit), cwd="/", env=self.environment(unit, **variables),
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def start(self, unit: str) -> None:
        for name in shlex.split(" ".join(self.values(unit, "StateDirectory"))):
            (self.root / "var/lib" / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.values(unit, "Type") == ["oneshot"]:
            result = self.run(unit)
            assert result.returncode == 0, result
            return
        path = self.root / f"{unit}.notify"
        path.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices,
            open(self.root / f"{unit}.log", "ab") as log,
        ):
            notices.bind(str(path))
            notices.settimeout(60)
            process = subprocess.Popen(
                self.command(unit), cwd="/", env=self.environment(unit, NOTIFY_SOCKET=str(path)),
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            self._pid_file(unit).write_text(str(process.pid))
            assert b"READY=1" in notices.recv(1000)

    def stop(self, unit: str) -> None:
        """End it, if it runs."""
        if self._pid_file(unit).exists():
            pid = int(self._pid_file(unit).read_text())
            os.kill(pid, signal.SIGTERM)
            until(partial(has_ended, pid))
            self._pid_file(unit).unlink()

    def _pid_file(self, unit: str) -> Path:
        return self.root / f"{unit}.pid"


def main(root: str, verb: str, *names: str) -> None:
    machine = Machine(Path(root))
    for unit in (name for name in names if not name.startswith("--")):
        assert (machine.units / unit).exists(), unit
        if unit.endswith(".timer"):
            continue
        if verb in ("stop", "restart"):
            machine.stop(unit)
        if verb in ("enable", "start", "restart"):
            machine.start(unit)


if __name__ == "__main__":
    main(*sys.argv[1:])
