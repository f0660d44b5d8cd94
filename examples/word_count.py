"""A program for a worker: reads the input as JSON from stdin, and prints the output last.

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
