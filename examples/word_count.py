"""A program for a worker: reads the input as JSON from stdin, and prints the output as JSON.

    taskservice work --agent word-count -- python examples/word_count.py

Start tasks for it from anywhere:

    taskservice task start --agent word-count --input '{"text": "some words"}' --follow
"""

import json
import sys

task_input = json.load(sys.stdin)
if "text" not in task_input:
    sys.exit("The input has no text")
print(f"Counting {len(task_input['text'])} characters", flush=True)
print(json.dumps({"words": len(task_input["text"].split())}))
