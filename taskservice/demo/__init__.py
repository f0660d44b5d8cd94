"""A fictional team with agents of many kinds: two months of history, and live agents."""
