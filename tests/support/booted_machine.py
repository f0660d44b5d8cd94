"""A machine with its own systemd and the programs of this one; its changes are discarded."""

import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

from tests.support.documents import ROOT
from tests.support.requirements import needs
from tests.support.waiting import child_ids, until

SYSTEMD = Path("/usr/lib/systemd/systemd")
# The test's directory, in the machine.
SHARED = Path("/mnt")
# Only the journal is started, without the services of this machine.
_BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs {disk}
mkdir {disk}/upper {disk}/work {disk}/root
mount -t overlay overlay -o lowerdir=/,upperdir={disk}/upper,workdir={disk}/work {disk}/root
cd {disk}/root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/shm dev/pts
mount -t devpts -o newinstance devpts dev/pts
ln -s pts/ptmx dev/ptmx
for name in null zero full random urandom tty; do
    touch dev/$name
    mount --bind /dev/$name dev/$name
done
ln -s /proc/self/fd dev/fd
mkdir -p .{source}
mount --bind {source} .{source}
mount --bind {shared} .{folder}
: > etc/fstab
rm -rf etc/systemd/system/*
find usr/lib/systemd/system/*.wants -type l ! -name '*journal*' -delete
mkdir replaced
pivot_root . replaced
umount --lazy replaced
exec env -i container=other PATH=/usr/sbin:/usr/bin chroot . {systemd} --unit=basic.target
"""


class BootedMachine:
    """Runs until the block ends, with its own network."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0 or not SYSTEMD.exists() or shutil.which("unshare") is None:
            needs("systemd", "install the package systemd, and run the tests as root")
        self.folder = folder
        (folder / "disk").mkdir(parents=True)

    def __enter__(self) -> "BootedMachine":
        boot = _BOOT.format(
            disk=self.folder / "disk", shared=self.folder, folder=SHARED, source=ROOT,
            systemd=SYSTEMD,
        )  # fmt: skip
        apart = ("mount", "pid", "uts", "ipc", "cgroup", "net")
        namespaces = ["--fork", "--kill-child", *(f"--{name}" for name in apart)]
        with open(self.folder / "boot.log", "wb") as log:
            self._unshare = subprocess.Popen(
                ["unshare", *namespaces, "sh", "-c", boot], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            until(self._is_booted)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _is_booted(self) -> bool:
        if self._unshare.poll() is not None:
            reason = (self.folder / "boot.log").read_text()
            needs(
                "right to boot a systemd", f"run the tests as root on a machine that may: {reason}"
            )
        (self._pid,) = child_ids(self._unshare.pid) or [0]
        return self._pid != 0 and self.start("systemctl is-active basic.target").returncode == 0

    def _end(self) -> None:
        # Its first process ends with it, and then all others.
        self._unshare.send_signal(signal.SIGKILL)
        self._unshare.wait()

    def start(
        self, script: str, umask: int = 0o022, has_internet: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        """Run lines of a root shell, each of which must succeed."""
        namespaces = ["mount", "pid", "uts", "ipc", "cgroup", *(() if has_internet else ("net",))]
        enter = [
            "nsenter", f"--target={self._pid}", "--root", *(f"--{name}" for name in namespaces),
        ]  # fmt: skip
        # Python's own variables would lead a virtual environment back to the tests.
        environment = {name: os.environ[name] for name in os.environ if "PYTHON" not in name}
        prepared = f"umask {umask:03o}; cd {shlex.quote(str(ROOT))}\n{script}"
        return subprocess.run(
            [*enter, "bash", "-e", "-c", prepared],
            env=environment | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280,
        )  # fmt: skip

    def run(self, script: str, umask: int = 0o022, has_internet: bool = False) -> str:
        """The stdout of lines of a root shell, which must succeed."""
        result = self.start(script, umask, has_internet)
        assert result.returncode == 0, (result, self.journal())
        return result.stdout

    def journal(self) -> str:
        return self.start("journalctl --no-pager --lines 40").stdout
