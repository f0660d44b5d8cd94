"""When a failed webhook is posted again."""

# Seconds from each failed attempt to the next one; after the last of them the delivery fails.
SCHEDULE = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
# The part of each delay by which it may be shorter or longer.
JITTER = 0.2
# The longest delay that a receiver can ask for.
MAX_RETRY_AFTER = 86_400.0
LONGEST_DELAY_SECONDS = max(max(SCHEDULE) * (1 + JITTER), MAX_RETRY_AFTER)
