"""The outcome of an attempt to send a webhook."""

from typing import NamedTuple


class Outcome(NamedTuple):
    """How one attempt ended."""

    message: str  # one sentence for a person, without secrets and without path or query
    delivered: bool = False  # the receiver answered 2xx
    permanent: bool = False  # do not try again: the URL is refused, or the answer was 410
    status_code: int | None = None  # None if there was no answer
    retry_after: float | None = None  # seconds that the receiver asks for, at most a day
    duration_ms: int = 0
    answer: str | None = None  # the beginning of the receiver's answer, of at most 1 KiB
