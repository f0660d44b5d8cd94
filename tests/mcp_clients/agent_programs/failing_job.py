"""Fails after a second."""

import sys
import time

print("looking for the disk", flush=True)
time.sleep(1)
sys.exit("the disk is gone")
