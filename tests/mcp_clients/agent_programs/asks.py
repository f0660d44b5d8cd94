"""Asks for one value; `argv` has its name and its type."""

import json
import sys

from taskservice.client import current

name, kind = sys.argv[1:]
schema = {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
with current() as task:
    print(json.dumps(task.ask(f"What is {name}?", schema)))
