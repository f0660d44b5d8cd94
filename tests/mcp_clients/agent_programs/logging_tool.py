"""Prints a few lines."""

for number in range(3):
    print(f"line {number}")
