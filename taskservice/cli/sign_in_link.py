"""`taskservice sign-in-link`: prints a link that signs a person in without a key."""

import click

from taskservice.cli import options
from taskservice.cli.serve import page_url, service_app
from taskservice.services import sign_in_links
from taskservice.terminal import notice, print_line


@options.command(
    "taskservice sign-in-link",
    "alice",
    "alice --key wall-screen",
    short_help="Print a single-use link that signs a user in.",
)
@click.argument("user", type=options.text)
@options.text_option(
    "--key",
    metavar="NAME",
    help="Name of the user key to sign in with (default: the oldest key with full access).",
)
def command(user: str, key: str | None) -> None:
    """Print a link that signs USER in to the dashboard. The link works once, within 15 minutes."""
    with service_app():
        link = sign_in_links.create_for(user, key)
        print_line(page_url(f"sign-in/{link.token}"))
        notice(f"The link works once, until {link.expires_at[11:16]} UTC")
