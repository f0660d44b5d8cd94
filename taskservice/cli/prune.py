"""`taskservice prune`: apply retention now."""

from math import inf

import click

from taskservice.background import removal
from taskservice.background.removal import Bounds, Removed
from taskservice.cli.options import examples, json_object
from taskservice.cli.service_app import service_app
from taskservice.database.transactions import database_moment
from taskservice.terminal import print_json, print_line, remark


@click.command(
    "prune",
    short_help="Remove what is past its retention.",
    epilog=examples(
        "TASKSERVICE_RETENTION_DAYS=30 taskservice prune --dry-run",
        "TASKSERVICE_RETENTION_DAYS=30 taskservice prune",
    ),
)
@click.option("--dry-run", is_flag=True, help="Remove nothing; print what would be removed.")
@json_object
def command(dry_run: bool, as_json: bool) -> None:
    """Remove finished tasks and logs that are past their retention, and free disk space.

    TASKSERVICE_RETENTION_DAYS and TASKSERVICE_LOG_RETENTION_DAYS set the number of days.
    The service may run meanwhile. Unlike the service, this command does not require the
    clock to have been steady for five minutes.
    """
    with service_app():
        bounds = Bounds.of_settings(database_moment())
        if bounds == Bounds(None, None):
            remark(
                "Retention is off: set TASKSERVICE_RETENTION_DAYS or TASKSERVICE_LOG_RETENTION_DAYS"
            )
        removed = removal.count_prunable(bounds) if dry_run else _prune(bounds)
    if as_json:
        print_json(vars(removed))
    else:
        print_line(_sentence(removed, "would be removed" if dry_run else "removed"))


def _prune(bounds: Bounds) -> Removed:
    removed = removal.prune_now(bounds)
    removal.sweep(inf)
    removal.shrink(inf)
    return removed


def _sentence(removed: Removed, verb: str) -> str:
    tasks = f"{removed.tasks} task{'' if removed.tasks == 1 else 's'}"
    others = f"the log{'' if removed.logs == 1 else 's'} of {removed.logs} more"
    return f"{tasks} and {others} {verb}, about {removed.bytes / 1_000_000:.1f} MB"
