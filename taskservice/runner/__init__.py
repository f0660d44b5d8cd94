"""Makes any program a task: runs it, records what it prints, and reports how it ended."""
