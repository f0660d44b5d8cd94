"""Computes for as many seconds as its input says, and prints how far it is."""

import json
import sys
import time

wanted = json.load(sys.stdin)
seconds = wanted["seconds"]
began = time.monotonic()
while (passed := time.monotonic() - began) < seconds:
    print(f"computing {wanted['label']}: {passed:.1f} of {seconds} s", flush=True)
    time.sleep(min(0.2, seconds - passed))
print(json.dumps({"label": wanted["label"], "seconds": seconds}))
