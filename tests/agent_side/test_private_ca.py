"""A service whose certificate a private CA has signed."""

import subprocess
from pathlib import Path

import pytest

from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine
from tests.support.certificates import Authority
from tests.support.receiver import Receiver


@pytest.fixture
def private_ca(authority: Authority, tmp_path: Path) -> dict[str, str]:
    """The variables of the environment that name the CA: a file, or a directory by its hash."""
    file = tmp_path / "authority.pem"
    file.write_bytes(authority.pem)
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(file)]
    hashed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "certificates").mkdir()
    (tmp_path / "certificates" / f"{hashed}.0").symlink_to(file)
    return {
        "SSL_CERT_FILE": str(file),
        "SSL_CERT_DIR": str(tmp_path / "certificates"),
        "REQUESTS_CA_BUNDLE": str(file),
    }


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_client_trusts_a_private_ca_of_the_environment(
    machine: AgentMachine, authority: Authority, private_ca: dict[str, str], name: str
) -> None:
    program = "from taskservice.client import Client; print([*Client().tasks()])"
    with Receiver(tls=authority.server("127.0.0.1"), answer=played.answer(200, [])) as service:
        machine.url, machine.settings = service.url, {name: private_ca[name]}
        listed = machine.run("task", "list", "--json")
        assert (listed.returncode, listed.stdout) == (0, ""), listed.stderr
        # Nothing warns of an unverified connection; a slow machine may retry.
        assert all("does not respond" in line for line in listed.stderr.splitlines()), listed.stderr
        printed, errors = machine.python(program).communicate(timeout=60)
        assert (printed, errors) == ("[]\n", "")


def test_client_refuses_an_unknown_ca(machine: AgentMachine, authority: Authority) -> None:
    machine.give_up_soon()
    with Receiver(tls=authority.server("127.0.0.1"), answer=played.answer(200, [])) as service:
        machine.url = service.url
        refused = machine.run("task", "list")
        assert refused.returncode == 69
        assert "TLS failed" in refused.stderr
        assert service.requests == []
