"""Makes one attempt to send an email, and describes the outcome."""

import io
import smtplib
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any

from taskservice.bounded_http import Deadline, LimitedStream, Limits, TooLargeError
from taskservice.webhooks.destinations import Destinations, MailServer, sender_parts
from taskservice.webhooks.interrupt import Interrupt
from taskservice.webhooks.outcome import Outcome
from taskservice.webhooks.transport import Connection, NoResponseError, system_addresses

SETTING = "TASKSERVICE_SMTP_URL"
MAX_REPLY_BYTES = 64 * 1024
KEPT_CHARACTERS = 500

# The operator chooses the server: the allowed destinations of callbacks do not apply to it.
_ANYWHERE = Destinations.parse("0.0.0.0/0,::/0")


def send_mail(
    server: MailServer,
    sender: str,
    recipient: str,
    subject: str,
    text: str,
    *,
    message_id: str,
    seconds: float,
    interrupt: Interrupt | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> Outcome:
    """Send a plain-text email within `seconds`; a failure of the server is returned, not raised.

    Raises Interrupted if `interrupt` was set before the server accepted or refused the email.
    `confirm` is called once, before the content is sent. An error that `confirm` raises ends the
    attempt, and is raised here.
    """
    deadline, interrupt = Deadline(seconds), interrupt or Interrupt()
    connection = Connection(server.at, _ANYWHERE, deadline, system_addresses, interrupt)
    content = mail(sender, recipient, subject, text, message_id)
    _, address = sender_parts(sender)
    try:
        with closing(connection):
            connection.connect()
            with closing(_Session(connection, deadline, address.rpartition("@")[2])) as session:
                _open(session, server)
                outcome = _deliver(session, server, address, recipient, content, confirm)
    except NoResponseError as error:
        outcome = Outcome(str(error))
    except smtplib.SMTPResponseException as error:
        outcome = _refusal(server, "the email", error.smtp_code, error.smtp_error)
    except (TooLargeError, smtplib.SMTPException, OSError) as error:
        is_late = TimeoutError in (type(error), type(error.__context__))
        reason = "ended the connection"
        if is_late:
            reason = f"did not accept the email within {seconds:g} s"
        outcome = Outcome(f"{server.at.host} {reason}.")
    if outcome.status_code is None:
        interrupt.check()
    return outcome._replace(duration_ms=round(deadline.elapsed() * 1000))


class _Session(smtplib.SMTP):
    """SMTP on an open connection, with one deadline for all replies."""

    def __init__(self, connection: Connection, deadline: Deadline, domain: str) -> None:
        # Send the sender's domain in EHLO. By default, smtplib would look up the name of this
        # machine, without a deadline.
        super().__init__(local_hostname=domain)
        self._connection, self._deadline = connection, deadline
        self.sock = connection.sock

    def send(self, s: Any) -> None:
        self._connection.sock.settimeout(self._deadline.remaining())
        super().send(s)

    def getreply(self) -> tuple[int, bytes]:
        if self.file is None:
            sock = self._connection.sock
            limits = Limits(MAX_REPLY_BYTES, self._deadline)
            stream = LimitedStream(sock.makefile("rb", buffering=0), sock, limits)
            self.file = io.BufferedReader(stream)
        return super().getreply()

    def encrypt(self) -> None:
        """Like `smtplib.SMTP.starttls`, but `Connection` verifies the certificate."""
        code, reply = self.docmd("STARTTLS")
        if code != 220 or self.file is None:
            raise smtplib.SMTPResponseException(code, reply)
        # Data that has already arrived was not encrypted, so it is discarded.
        self.file.close()
        self.file = None
        self._connection.start_tls()
        self.sock = self._connection.sock
        self.ehlo()


def _open(session: _Session, server: MailServer) -> None:
    """Start TLS if the server supports it, then log in if a user is set; raises NoResponseError."""
    place = f"{server.at.host} on port {server.at.port}"
    if session.getreply()[0] != 220:
        raise NoResponseError(f"{place} accepts no email now.")
    session.ehlo_or_helo_if_needed()
    if server.at.scheme == "smtp":
        if session.has_extn("starttls"):
            session.encrypt()
        elif server.password:
            sentence = f"{place} offers no encryption, so the password in {SETTING} was not sent."
            raise NoResponseError(sentence)
    if server.user:
        try:
            session.login(server.user, server.password)
        except smtplib.SMTPServerDisconnected:
            raise
        except smtplib.SMTPException as error:
            raise NoResponseError(f"{place} refused the login in {SETTING}.") from error


def _deliver(
    session: _Session,
    server: MailServer,
    sender: str,
    recipient: str,
    content: bytes,
    confirm: Callable[[], None],
) -> Outcome:
    code, reply = session.mail(sender)
    if code != 250:
        return _refusal(server, "the sender in TASKSERVICE_MAIL_FROM", code, reply)
    code, reply = session.rcpt(recipient)
    if code not in (250, 251):
        return _refusal(server, "the recipient", code, reply)._replace(permanent=code >= 500)
    confirm()
    code, reply = session.data(content)
    if code != 250:
        return _refusal(server, "the email", code, reply)
    with suppress(smtplib.SMTPException, OSError):
        session.putcmd("quit")
    return Outcome(f"{server.at.host} accepted the email.", delivered=True, status_code=code)


def _refusal(server: MailServer, what: str, code: int, reply: bytes | str) -> Outcome:
    text = reply.decode(errors="replace") if isinstance(reply, bytes) else reply
    later = " for now" if 400 <= code < 500 else ""
    return Outcome(
        f"{server.at.host} refused {what}{later} with {code}.",
        status_code=code,
        answer=text.replace("\0", "\ufffd")[:KEPT_CHARACTERS] or None,
    )


def mail(sender: str, recipient: str, subject: str, text: str, message_id: str) -> bytes:
    """A plain-text email; `message_id` is the part of the Message-ID before the @."""
    message = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
    name, address = sender_parts(sender)
    message["From"] = Address(name, addr_spec=address)
    message["To"] = recipient
    # Python decodes an encoded word such as `=?utf-8?q?a=0ABcc:_b?=`. Before version 3.11.10,
    # Python then writes the decoded line break unchanged, which would add a header.
    message["Subject"] = subject.replace("=?", "=\u200b?")
    message["Date"] = datetime.now(UTC)
    message["Message-ID"] = f"<{message_id}@{address.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    return message.as_bytes()
