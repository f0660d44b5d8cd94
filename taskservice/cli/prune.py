"""`taskservice prune`: what retention does, now."""

from math import inf

import click

from taskservice.background import retention, sweep, vacuum
from taskservice.background.retention import Bounds, Removed
from taskservice.cli.server_command import service
from taskservice.database.transactions import database_moment
from taskservice.terminal import print_json, print_line, remark


@click.command("prune")
@click.option("--dry-run", is_flag=True, help="Remove nothing, only say what would go.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(dry_run: bool, as_json: bool) -> None:
    """Remove now what is too old by TASKSERVICE_RETENTION_DAYS and _LOG_RETENTION_DAYS.

    Space is given back to the disk. The service may run meanwhile. The clock is taken to be
    right: unlike the service, this does not wait until it has been steady for five minutes.
    """
    with service():
        bounds = Bounds.of_settings(database_moment())
        if bounds == Bounds(None, None):
            remark("nothing is too old, since neither is set")
        removed = retention.count_prunable(bounds) if dry_run else _prune(bounds)
    if as_json:
        print_json(vars(removed))
    else:
        print_line(_sentence(removed, "would be removed" if dry_run else "removed"))


def _prune(bounds: Bounds) -> Removed:
    removed = retention.prune_now(bounds)
    sweep.sweep(inf)
    vacuum.shrink(inf)
    return removed


def _sentence(removed: Removed, verb: str) -> str:
    tasks = f"{removed.tasks} task{'' if removed.tasks == 1 else 's'}"
    others = f"the log{'' if removed.logs == 1 else 's'} of {removed.logs} more"
    return f"{tasks} and {others} {verb}, about {removed.bytes / 1_000_000:.1f} MB"
