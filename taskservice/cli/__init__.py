"""The commands of `taskservice`."""

from taskservice.cli.commands import main

__all__ = ["main"]
