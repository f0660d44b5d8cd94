"""Asks before it deletes what its input names; it deletes nothing."""

import json
import subprocess
import sys

SCHEMA = {
    "type": "object",
    "properties": {"confirm": {"type": "boolean", "title": "Delete it"}},
    "required": ["confirm"],
}

filename = json.load(sys.stdin)["filename"]
print(f"found {filename}", flush=True)
asked = subprocess.run(
    [sys.executable, "-m", "taskservice", "ask", f"Delete {filename}?", "--schema", "-"],
    input=json.dumps(SCHEMA), stdout=subprocess.PIPE, text=True, check=False,
)  # fmt: skip
print(json.dumps({"filename": filename, "deleted": asked.stdout == "true\n"}))
