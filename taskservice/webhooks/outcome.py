"""How one attempt to send a message ended."""

from typing import NamedTuple


class Outcome(NamedTuple):
    message: str  # human-readable, without secrets, and without the URL's path and query
    delivered: bool = False  # the response was 2xx
    permanent: bool = False  # not tried again: the URL is refused, or the receiver returned 410
    status_code: int | None = None  # None without a response
    retry_after: float | None = None  # seconds that the receiver requests, at most a day
    duration_ms: int = 0
    answer: str | None = None  # the first KiB of the response's body
    text: str | None = None  # the text of a message to people, without links
