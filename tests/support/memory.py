"""The memory of a running service."""

from pathlib import Path

from tests.support.service import Service

MEGABYTE = 1024 * 1024


def memory(service: Service, which: str) -> int:
    """Bytes in the memory of the service's worker: `VmRSS` now, `VmHWM` the maximum."""
    (worker,) = service.workers()
    status = Path(f"/proc/{worker}/status").read_text()
    kilobytes = next(line for line in status.splitlines() if line.startswith(which))
    return int(kilobytes.split()[1]) * 1024
