"""taskservice keeps the results of agents: tasks, their logs, and signed callbacks."""

try:
    from taskservice._version import __version__ as __version__
except ModuleNotFoundError:  # sources that nothing has built
    __version__ = "0.1.0.dev0"
