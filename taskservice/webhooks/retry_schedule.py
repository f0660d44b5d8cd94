"""When a failed delivery is tried again."""

# Seconds from each failed attempt to the next attempt. The delivery fails if the attempt after the
# last delay fails.
SCHEDULE = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
JITTER = 0.2  # each delay is randomly longer or shorter by up to this fraction
MAX_RETRY_AFTER = 86_400.0  # the maximum delay that a receiver can ask for
LONGEST_DELAY_SECONDS = max(max(SCHEDULE) * (1 + JITTER), MAX_RETRY_AFTER)
