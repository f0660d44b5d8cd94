"""How one attempt to send a message ended."""

from typing import NamedTuple


class Outcome(NamedTuple):
    message: str  # one sentence for a person, without secrets and without path or query
    delivered: bool = False  # the response was 2xx
    permanent: bool = False  # do not try again: the URL is refused, or the response was 410
    status_code: int | None = None  # None without a response
    retry_after: float | None = None  # seconds that the receiver asks for, at most a day
    duration_ms: int = 0
    answer: str | None = None  # the first KiB of the response's body

    @property
    def failure(self) -> str | None:
        """The kind of the failure, as MCP's events name it; None if there was none."""
        if self.delivered:
            return None
        if self.status_code is not None:
            return "http_5xx" if self.status_code >= 500 else "http_4xx"
        # See the sentences in `transport`.
        if " within " in self.message:
            return "timeout"
        is_of_tls = self.message.startswith("The certificate") or " TLS " in self.message
        return "tls_error" if is_of_tls else "connection_refused"
