"""`taskservice login` and `logout`: store and remove the URL of the service and a key."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from taskservice.cli import options, service_client
from taskservice.client import http, responses
from taskservice.terminal import exit_with_error, notice, print_line
from taskservice.terms import KEY_VARIABLE, PROFILE_VARIABLE


def _profile_option(action: str) -> Callable[[Any], Any]:
    default = f"{PROFILE_VARIABLE}, else the profile {http.DEFAULT_PROFILE}"
    text = f"Profile to {action} (default: {default})."
    return options.text_option("--profile", metavar="NAME", help=text)


@options.command(
    "taskservice login",
    "https://tasks.example.org",
    "--profile team https://tasks.example.org < key.txt",
)
@click.argument("url", type=options.text, default="")
@_profile_option("store")
def command(url: str, profile: str | None) -> None:
    """Store the URL of the service and an API key.

    The command asks for the key, without showing it, and tests it. Without a terminal, it reads the
    key from stdin. The default URL is TASKSERVICE_URL, else the stored URL, else
    http://127.0.0.1:8000.

    The URL and the key are stored in a file that only its owner can read. The client commands and
    the Python client use them, unless TASKSERVICE_URL or TASKSERVICE_APIKEY is set.
    """
    name = profile or http.chosen_profile()
    with service_client.one_line_errors(unavailable=service_client.UNAVAILABLE):
        profiles = http.load_profiles()
        url = url or os.environ.get("TASKSERVICE_URL") or profiles.get(name, {}).get("url", "")
        url = url or "http://127.0.0.1:8000"
        if sys.stdin.isatty():
            key = click.prompt(f"API key for {url}", hide_input=True, err=True).strip()
        else:
            key = sys.stdin.readline().strip()
        if not key:
            exit_with_error("stdin is empty; login reads the API key there: login < key.txt", 2)
        connection = service_client.PersonConnection(url, key)
        user = connection.call("GET", "/user", responses.USER).data
        _save({**profiles, name: {"url": connection.url, "apikey": key}})
    print_line(f"{user['name']} is logged in to {connection.url} (key {user['key']['name']})")


def _save(profiles: Mapping[str, Mapping[str, str]]) -> None:
    try:
        http.save_profiles(profiles)
    except OSError as error:
        exit_with_error(f"{http.profiles_file()} can't be written: {error.strerror}")
    if set_variables := [name for name in ("TASKSERVICE_URL", KEY_VARIABLE) if name in os.environ]:
        notice(f"while {set_variables[0]} is set, the stored URL and key are not used")


@options.command("taskservice logout")
@_profile_option("remove")
def logout_command(profile: str | None) -> None:
    """Remove the stored URL and key. The key itself stays valid until it is revoked."""
    name = profile or http.chosen_profile()
    with service_client.one_line_errors():
        profiles = http.load_profiles()
        if name not in profiles:
            exit_with_error(f"There is no stored profile {name}")
        url = profiles.pop(name)["url"]
        _save(profiles)
    print_line(f"Logged out of {url}")
