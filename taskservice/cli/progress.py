"""`taskservice progress`: a program says how far its task is."""

import os
import re
from typing import Any

import click

from taskservice.cli.options import Text, examples
from taskservice.cli.service_client import service_client
from taskservice.client import answers
from taskservice.client import client as current_task
from taskservice.client.api import path_segment
from taskservice.runner.program_output import Masker

_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_SHARE = re.compile(rf"({_NUMBER})(?:/({_NUMBER})|(%))?")


class Share(click.ParamType[float]):
    """`34/68`, `50%` or `0.5`; converted to a number from 0 to 1."""

    name = "share"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = _SHARE.fullmatch(value)
        if match is None:
            self.fail("must be such as 34/68, 50% or 0.5", param, ctx)
        whole = float(match[2] or (100 if match[3] else 1))
        if not whole or float(match[1]) > whole:
            self.fail("must be from 0 to 1, such as 34/68, 50% or 0.5", param, ctx)
        return float(match[1]) / whole


@click.command(
    "progress",
    short_help="Say how far the task of this program is.",
    epilog=examples(
        'taskservice progress 34/68 "34 of 68 pages"',
        "taskservice progress 50%",
    ),
)
@click.argument("share", metavar="DONE", type=Share())
@click.argument("note", type=Text(), required=False)
def command(share: float, note: str | None) -> None:
    """Say how far the task is, in a program that `run` or `work` started.

    DONE is such as 34/68, 50% or 0.5. NOTE says the same in words, in at most 200 characters;
    without it, the note stays as it is.
    """
    changes: dict[str, Any] = {"progress": share}
    if note is not None:
        changes["note"] = Masker(os.environ).mask_text(note)
    with service_client() as client:
        path = f"/task/{path_segment(current_task.require_task_id())}"
        shape = answers.task("id")
        client.connection.call("PATCH", path, shape, params={"fields": "id"}, json=changes)
