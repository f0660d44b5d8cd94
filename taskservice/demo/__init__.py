"""A made-up team with agents of many kinds, to look at: two months of history, and live agents."""
