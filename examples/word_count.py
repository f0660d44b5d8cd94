"""A program for a worker: the task's input is JSON on stdin, the output is the last line.

    taskservice work --agent word-count -- python examples/word_count.py

Start tasks for it from anywhere:

    taskservice task start --agent word-count --input '{"text": "some words"}' --follow
"""

import json
import sys

given = json.load(sys.stdin)
if "text" not in given:
    sys.exit("The input has no text")
print(f"Counting {len(given['text'])} characters", flush=True)
print(json.dumps({"words": len(given["text"].split())}))
