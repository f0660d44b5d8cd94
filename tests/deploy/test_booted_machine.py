"""What deploy/ ships, started by systemd as the manual says: backups, a socket, proxies."""

import json
import re
import time
from functools import partial
from pathlib import Path

import pytest

from tests.support.booted_machine import SHARED, BootedMachine
from tests.support.certificates import Authority
from tests.support.deployed_caddy import needs_other_names
from tests.support.documents import block_in
from tests.support.packages import wheel
from tests.support.requirements import needs
from tests.support.waiting import until

HOST = "tasks.example.org"
# Of a root who lets others read nothing.
CAREFUL = 0o077


# One test, since each needs an installed machine.
@pytest.mark.timeout(900)
def test_machine_serves_as_the_manual_says(tmp_path: Path, subtests: pytest.Subtests) -> None:
    with BootedMachine(tmp_path / "machine") as machine:
        key = install(machine)
        with subtests.test("the nightly backup"):
            backup_is_made(machine)
        with subtests.test("a move to another machine"):
            installation_moves(machine, key)
        with subtests.test("a backup in a folder of its own"):
            backup_is_made_in_a_folder_of_its_own(machine)
        with subtests.test("a backup that fails"):
            backup_that_fails_is_noticed(machine, key)
        with subtests.test("nginx"):
            prepare_nginx(machine)
            machine.run("systemctl restart nginx")
            assert user_by_nginx(machine, key) == "alice"
        with subtests.test("Caddy"):
            prepare_caddy(machine)
            machine.run("systemctl restart caddy")
            assert user_by_caddy(machine, key) == "alice"
        machine.run(block_in("operate", "socket"))
        with subtests.test("nginx on a socket"):
            machine.run(block_in("operate", "nginx on a socket"))
            assert user_by_nginx(machine, key) == "alice"
        with subtests.test("Caddy on a socket"):
            machine.run(block_in("operate", "caddy on a socket"))
            assert user_by_caddy(machine, key) == "alice"
        with subtests.test("Litestream"):
            litestream_copies_the_database(machine)
        with subtests.test("others"):
            others_reach_neither_data_nor_socket(machine)


def install(machine: BootedMachine) -> str:
    """Install and start it as a careful root does; returns the first user's key."""
    if machine.start("python3 -m venv /opt/tried && rm -r /opt/tried").returncode:
        needs("venv of the system's Python", "install the package python3-venv")
    # Only root can read it there.
    file = SHARED / wheel(machine.folder).relative_to(machine.folder)
    machine.run(f"chmod 700 /root && cp {file} /root/")
    commands = block_in("operate", "install")
    installed = re.sub(r"'(taskservice|\.)\[", f"'/root/{file.name}[", commands)
    assert installed != commands
    machine.run(installed, CAREFUL, has_internet=True)
    machine.run(block_in("operate", "start"), CAREFUL)
    key = machine.run(block_in("operate", "first user"), CAREFUL).split()[-1]
    assert machine.run("curl -fsS http://127.0.0.1:8000/readyz") == '{"status":"ok"}'
    assert "ok       integrity" in machine.run(f"{shell()}\ntaskservice db check")
    return key


def installation_moves(machine: BootedMachine, key: str) -> None:
    """To this machine, from which everything but the programs was removed."""
    machine.run(f"{shell()}\n{block_in('operate', 'leave the old machine')}")
    assert machine.start("systemctl is-active taskservice.service").returncode
    copied = block_in("operate", "copy to the new machine")
    machine.run(copied.replace("scp ", "cp ").replace("root@new.example.org:", ""))
    machine.run("rm -r /var/lib/taskservice /etc/taskservice.env")
    machine.run(block_in("operate", "arrive at the new machine"), CAREFUL)
    shown = machine.run(curl("/api/v1/user", "-H", f"'apikey: {key}'"))
    assert json.loads(shown)["name"] == "alice"
    assert "move.db" not in machine.run("ls /var/lib/taskservice")


def last_backup(machine: BootedMachine) -> float:
    shown = machine.run(curl("/metrics"))
    (seconds,) = re.findall(r"^taskservice_last_backup_timestamp_seconds (\S+)$", shown, re.M)
    return float(seconds)


def curl(path: str, *options: str) -> str:
    return " ".join(["curl", "-fsS", *options, f"http://127.0.0.1:8000{path}"])


def backup_is_made(machine: BootedMachine) -> None:
    began = time.time()
    machine.run("systemctl is-enabled taskservice-backup.timer")
    machine.run("systemctl is-active taskservice-backup.timer")
    machine.run("systemctl start taskservice-backup.service")
    names = machine.run("ls /var/lib/taskservice-backups").split()
    assert [name.partition("-2")[0] for name in names] == ["secret_key", "taskservice"]
    assert last_backup(machine) > began - 1


def backup_is_made_in_a_folder_of_its_own(machine: BootedMachine) -> None:
    machine.run(block_in("operate", "backup directory"))
    names = machine.run("ls /backup").split()
    assert [name.partition("-2")[0] for name in names] == ["secret_key", "taskservice"]


def backup_that_fails_is_noticed(machine: BootedMachine, key: str) -> None:
    machine.run("chown root /backup; rm /var/lib/taskservice/last_backup")
    assert machine.start("systemctl start taskservice-backup.service").returncode != 0
    assert last_backup(machine) == 0
    shown = machine.start(
        f"TASKSERVICE_APIKEY={key} TASKSERVICE_URL=http://127.0.0.1:8000 "
        "/opt/taskservice/bin/taskservice status"
    )
    assert shown.returncode == 1
    assert "No backup has succeeded yet" in shown.stdout


def user_by(machine: BootedMachine, key: str, authority: Path) -> str:
    """Who the key belongs to, through TLS and the prefix."""
    trusted = f"--cacert {authority} --resolve {HOST}:443:127.0.0.1 --retry 20 --retry-all-errors"
    url = f"https://{HOST}/tasks/api/v1/user"
    shown = machine.run(f"curl -fsS {trusted} -H 'apikey: {key}' {url}")
    return str(json.loads(shown)["name"])


def user_by_nginx(machine: BootedMachine, key: str) -> str:
    name = user_by(machine, key, SHARED / "authority.pem")
    # Both listen on port 443.
    machine.run("systemctl stop nginx")
    return name


def user_by_caddy(machine: BootedMachine, key: str) -> str:
    root = Path("/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt")
    name = user_by(machine, key, root)
    machine.run("systemctl stop caddy")
    return name


def prepare_nginx(machine: BootedMachine) -> None:
    authority = Authority()
    (machine.folder / "authority.pem").write_bytes(authority.pem)
    (machine.folder / "server.pem").write_bytes(authority.server_pem(HOST))
    if machine.start("systemctl cat nginx").returncode:
        needs("nginx", "install the package nginx-light")
    machine.run(
        f"cp {SHARED}/server.pem /etc/ssl/certs/{HOST}.pem\n"
        f"cp {SHARED}/server.pem /etc/ssl/private/{HOST}.key\n"
        "install -m 644 deploy/nginx.conf /etc/nginx/conf.d/taskservice.conf"
    )


def prepare_caddy(machine: BootedMachine) -> None:
    if machine.start("systemctl cat caddy").returncode:
        needs("Caddy", "install the package caddy")
    machine.run("install -m 644 deploy/Caddyfile /etc/caddy/Caddyfile")
    if needs_other_names(machine.run("caddy version")):
        machine.run(block_in("operate", "caddy before 2.6.3"))
    # No authority outside can confirm the name of this machine.
    machine.run(f"sed -i 's/^{HOST} {{/&\\n\\ttls internal/' /etc/caddy/Caddyfile")


def litestream_copies_the_database(machine: BootedMachine) -> None:
    machine.run(block_in("operate", "litestream unit"), CAREFUL, has_internet=True)
    # One that stops earlier has copied nothing.
    until(lambda: machine.run("find /replica -name '*.ltx'"))
    machine.run(f"{shell()}\ntaskservice user add carol")
    # It copies the rest before it ends.
    machine.run("systemctl stop taskservice-litestream taskservice")
    machine.run("rm /var/lib/taskservice/taskservice.db*")
    machine.run(f"{shell()}\n{block_in('operate', 'litestream unit restore')}", CAREFUL)
    assert "carol" in machine.run(f"{shell()}\ntaskservice user list")
    machine.run("systemctl start taskservice")


def shell() -> str:
    """What makes a shell the root shell of docs/operate/install.md."""
    return "\n".join(block_in("operate", "first user").splitlines()[:2])


def others_reach_neither_data_nor_socket(machine: BootedMachine) -> None:
    paths = ["/var/lib/taskservice", "/var/lib/taskservice-backups", "/run/taskservice", "/replica"]
    for path in paths:
        assert machine.start(f"runuser -u nobody -- ls {path}").returncode != 0


def test_failed_unit_is_told_as_the_manual_says(tmp_path: Path) -> None:
    with BootedMachine(tmp_path / "machine") as machine:
        unit = block_in("operate", "notify-failure@.service")
        # In the place of a server on the internet.
        (machine.folder / "unit").write_text(unit.replace("/usr/bin/curl", "/bin/echo"))
        machine.run(
            f"cp {SHARED}/unit /etc/systemd/system/notify-failure@.service\n"
            "cp deploy/taskservice.service deploy/taskservice-backup.service /etc/systemd/system/\n"
            "useradd --system taskservice || id taskservice\n"
            "mkdir -p /opt/taskservice/bin\n"
            "printf '#!/bin/sh\\nexit 2\\n' > /opt/taskservice/bin/taskservice\n"
            "cp /opt/taskservice/bin/taskservice /opt/taskservice/bin/taskservice-backup\n"
            "chmod 755 /opt/taskservice/bin/*"
        )
        machine.run(block_in("operate", "on failure"))
        for name in ("taskservice", "taskservice-backup"):
            assert machine.start(f"systemctl start {name}.service").returncode == 1
            until(partial(is_in_journal, machine, f"-d {name} failed on"))


def is_in_journal(machine: BootedMachine, text: str) -> bool:
    return text in machine.journal()
