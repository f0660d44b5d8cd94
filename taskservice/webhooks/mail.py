"""Mail: its addresses, the URL of the server that takes it, and a whole message."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from urllib.parse import unquote

from taskservice.webhooks.destinations import RefusedError, Target, read_url

_PORTS = {"smtp": 587, "smtps": 465}
_URL = re.compile(r"(smtps?)://(?:([^:/?#@]+):([^/?#@]+)@)?([^/?#@]+)/?", re.IGNORECASE)
_WORD = r"[A-Za-z0-9!#$%&'*+=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(
    rf"(?=.{{1,254}}\Z)(?=[^@]{{1,64}}@){_WORD}(\.{_WORD})*@{_LABEL}(\.{_LABEL})*"
)


@dataclass(frozen=True)
class Server:
    """The server of `smtp://user:password@host:587`, or of `smtps://`."""

    at: Target
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> "Server":
        """Raises ValueError, whose text contains nothing of the URL."""
        if parts := _URL.fullmatch(text):
            scheme, user, password, host = (part or "" for part in parts.groups())
            port = "" if re.search(r":[0-9]+\Z", host) else f":{_PORTS[scheme.lower()]}"
            login = unquote(user), unquote(password)
            if all(part.isascii() and part.isprintable() for part in login):
                try:
                    at = read_url(f"http://{host}{port}")
                    return cls(at._replace(scheme=scheme.lower()), *login)
                except RefusedError:
                    pass
        raise ValueError(
            "must be smtp://user:password@host:587 or smtps://..., in ASCII, with %40 for an @ "
            "and %2F for a / in the password"
        )


def sender(text: str) -> str:
    """The address that mail comes from; raises ValueError."""
    if not _ADDRESS.fullmatch(text):
        raise ValueError("must be a mail address such as tasks@example.org")
    return text


def address(target: str) -> str:
    """The address of `mailto:ADDRESS`; raises ValueError with one sentence."""
    scheme, _, text = target.partition(":")
    found = unquote(text)
    if scheme.lower() != "mailto" or {"?", "#"} & set(text) or not _ADDRESS.fullmatch(found):
        raise ValueError(
            "The target is not mailto: with one mail address in ASCII and without parameters."
        )
    return found


def message(sender: str, recipient: str, subject: str, text: str, message_id: str) -> bytes:
    """A mail of plain text; `message_id` is the part before the domain, which is the sender's."""
    mail = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
    mail["From"] = sender
    mail["To"] = recipient
    # Python decodes `=?utf-8?q?a=0ABcc:_b?=`, and before 3.11.10 writes its line break as one.
    mail["Subject"] = subject.replace("=?", "=\u200b?")
    mail["Date"] = datetime.now(UTC)
    mail["Message-ID"] = f"<{message_id}@{sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(text)
    return mail.as_bytes()
