"""taskservice keeps the results of agents: tasks, their logs, and signed callbacks."""

__version__ = "0.1.0"
