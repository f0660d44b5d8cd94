"""Servers under test: pinned to one CPU, timed until their first answer, and measured."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.load import is_complete, request
from tests.support.service import environment, free_port

START_SECONDS = 120
THREADS = 16
IS_PINNED = (os.cpu_count() or 1) > 1
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def pin_load() -> None:
    """Exclude this process, which makes the load, from the CPU of the servers."""
    if IS_PINNED:
        os.sched_setaffinity(0, {1})


def prepare_server() -> None:
    # It ends with this process, however that ends.
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if IS_PINNED:
        os.sched_setaffinity(0, {0})


class Server:
    """A server, started by `with` and stopped at its end."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        port: int,
        first: bytes,
        checkout: Path | None = None,
    ) -> None:
        self.port, self.environment = port, dict(environment)
        self.url = f"http://127.0.0.1:{port}"
        # What it must answer before it counts as started.
        self.first = first
        self.command = command
        # The directory of another version, whose modules it imports.
        self.checkout = checkout
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the server is used
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> float:
        """Start it; returns the seconds until its first answer."""
        began = time.perf_counter()
        self.process = subprocess.Popen(
            self.command, env=self.environment, cwd=self.checkout, stdout=self._log,
            stderr=self._log, start_new_session=True, preexec_fn=prepare_server,
        )  # fmt: skip
        while not self._answers():
            self._require_running(began)
            time.sleep(0.002)
        return time.perf_counter() - began

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return exchange(self.port, self.first)[9:10] in (b"2", b"3")
        return False

    def _require_running(self, began: float) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            self._log.seek(0)
            printed = self._log.read().decode(errors="replace").strip()
            raise RuntimeError(f"a server ended at its start: {printed[-100:]}")
        if time.perf_counter() - began > START_SECONDS:
            self.stop()
            raise RuntimeError(f"a server gave no answer for {START_SECONDS} s")

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        # What it left behind: it leads a process group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def pids(self) -> list[int]:
        """All of its processes."""
        assert self.process is not None
        pids = [self.process.pid]
        for pid in pids:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            pids += [int(child) for child in children.split()]
        return pids

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop all of its processes for a block."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def processor_seconds(self) -> float:
        """The CPU time of all its processes."""
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2] for pid in self.pids()]
        ticks = sum(int(stat.split()[place]) for stat in stats for place in (11, 12))
        return ticks / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        """Memory of all its processes, what they share counted once (PSS)."""
        return sum(_kilobytes(pid, "smaps_rollup", "Pss:") for pid in self.pids()) / 1024

    def forget_peak(self) -> float:
        """Let the kernel note the most memory from now on; returns the megabytes in use now."""
        worker = self.pids()[-1]
        Path(f"/proc/{worker}/clear_refs").write_text("5")
        return _kilobytes(worker, "status", "VmRSS:") / 1024

    def peak(self) -> float:
        """The most megabytes of its last process since `forget_peak`."""
        return _kilobytes(self.pids()[-1], "status", "VmHWM:") / 1024


def _kilobytes(pid: int, file: str, name: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def exchange(port: int, data: bytes) -> bytes:
    """Send one request; returns its whole answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        answer = b""
        while not is_complete(answer) and (part := connection.recv(65_536)):
            answer += part
        return answer


def ours(data: Path, checkout: Path | None = None, **settings: str) -> Server:
    """`taskservice serve`, of another version in `checkout`, with its data in this directory."""
    port = free_port()
    variables = environment(data, BIND=f"127.0.0.1:{port}", LOG_LEVEL="warning", **settings)
    command = [sys.executable, "-m", "taskservice", "serve"]
    return Server(command, variables, port, request("GET", "/livez"), checkout)


def yardstick(module: str, first: bytes, workers: int = 1, **variables: str) -> Server:
    """An application of `benchmarks.yardsticks`, on gunicorn's gthread."""
    port = free_port()
    command = [
        sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--no-control-socket",
        "--worker-class", "gthread", "--threads", str(THREADS), "--workers", str(workers),
        "--log-level", "warning", f"benchmarks.yardsticks.{module}:create_app()",
    ]  # fmt: skip
    return Server(command, os.environ | variables, port, first)


@contextlib.contextmanager
def running(*servers: Server) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        yield
