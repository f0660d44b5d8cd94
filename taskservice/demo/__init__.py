"""A made-up team with agents of many kinds: two months of history, and live agents."""
