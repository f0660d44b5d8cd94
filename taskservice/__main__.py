"""Runs the command `taskservice` for `python -m taskservice`."""

from taskservice.cli import main

if __name__ == "__main__":
    main(prog_name="taskservice")
