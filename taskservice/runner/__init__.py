"""Runs any program as a task: records its output, and reports its exit status."""
