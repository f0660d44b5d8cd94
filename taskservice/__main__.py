"""`python -m taskservice` is the command `taskservice`."""

from taskservice.cli import main

if __name__ == "__main__":
    main(prog_name="taskservice")
