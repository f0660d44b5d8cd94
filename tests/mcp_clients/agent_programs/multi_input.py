"""Asks two questions at once."""

import json
from concurrent.futures import ThreadPoolExecutor

from taskservice.client import current

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "confirm": {"type": "boolean"}},
    "required": ["name"],
}


def ask(whom: str) -> str:
    with current() as task:
        return str(task.ask(f"Who is the {whom}?", SCHEMA)["name"])


with ThreadPoolExecutor() as threads:
    print(json.dumps({"names": list(threads.map(ask, ["first", "second"]))}))
