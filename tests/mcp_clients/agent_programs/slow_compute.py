"""Computes for as many seconds as its input says, and prints how far it is."""

import json
import sys
import time

task_input = json.load(sys.stdin)
seconds = task_input["seconds"]
began = time.monotonic()
while (passed := time.monotonic() - began) < seconds:
    print(f"computing {task_input['label']}: {passed:.1f} of {seconds} s", flush=True)
    time.sleep(min(0.2, seconds - passed))
print(json.dumps({"label": task_input["label"], "seconds": seconds}))
