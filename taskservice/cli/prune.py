"""`taskservice prune`: delete tasks and logs older than the retention time."""

from math import inf

from taskservice.background import removal
from taskservice.cli import options
from taskservice.cli.serve import service_app
from taskservice.database.transactions import database_time
from taskservice.terminal import notice, print_json, print_line


@options.command(
    "TASKSERVICE_RETENTION_DAYS=30 taskservice prune",
    "--dry-run",
    "",
    short_help="Delete tasks and logs older than the retention time.",
)
@options.flag("--dry-run", help="Print what would be deleted, and delete nothing.")
@options.json_object
def command(dry_run: bool, as_json: bool) -> None:
    """Delete finished tasks and logs older than the retention time, and free disk space.

    TASKSERVICE_RETENTION_DAYS and TASKSERVICE_LOG_RETENTION_DAYS set the number of days.
    You need not stop the service. The service deletes nothing in the five minutes after its start
    or a change of the clock; this command does not wait.
    """
    with service_app(makes_space=not dry_run):
        bounds = removal.bounds(database_time())
        if not any(bounds):
            notice(
                "Retention is off: set TASKSERVICE_RETENTION_DAYS or TASKSERVICE_LOG_RETENTION_DAYS"
            )
        if dry_run:
            tasks, logs = removal.count_prunable(*bounds)
        else:
            (tasks, logs), _ = removal.prune(*bounds, inf, removal.SWEEP_AFTER_SECONDS)
            removal.sweep(inf)
            removal.shrink(inf)
    text = f"{tasks} task{'' if tasks == 1 else 's'}"
    if logs:
        text += f" and the log{'' if logs == 1 else 's'} of {logs} more"
    elif not tasks:
        text = "Nothing"
    sentence = f"{text} {'would be deleted' if dry_run else 'deleted'}"
    print_json({"tasks": tasks, "logs": logs}) if as_json else print_line(sentence)
