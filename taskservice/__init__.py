"""taskservice records the runs of programs as tasks with logs, and sends signed webhooks."""

try:
    from taskservice._version import __version__ as __version__
except ModuleNotFoundError:  # the package has not been built
    __version__ = "0.1.0.dev0"
