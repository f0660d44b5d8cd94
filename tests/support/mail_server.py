"""A mail server on real sockets, aiosmtpd, which can also play the faults of mail servers.

    with MailServer() as server:
        send(server.url)
        [mail] = server.wait_for(1)
        mail.message["Subject"]

It accepts every email by default: `server.replies["RCPT"] = "550 No such user"` is its
reply to a command, and `server.held = "RCPT"` the command that it leaves without a reply. The
greeting counts as a command, `GREETING`, and the end of the email as `END`.
"""

import asyncio
import email
import email.policy
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any, cast

from aiosmtpd.smtp import MISSING, SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.support.waiting import PATIENCE_SECONDS

DRIP_SECONDS = 0.05


@dataclass(frozen=True)
class Mail:
    """An email as the server got it."""

    sender: str
    recipients: list[str]
    content: bytes
    is_encrypted: bool
    user: str | None  # who has logged in

    @property
    def message(self) -> EmailMessage:
        return email.message_from_bytes(self.content, policy=email.policy.default)

    @property
    def text(self) -> str:
        """The decoded text, with LF at the ends of its lines."""
        text = self.message.get_content()
        assert isinstance(text, str)
        return text.replace("\r\n", "\n")


@dataclass
class MailServer:
    """A server on a free port of 127.0.0.1; with `tls`, a server's context, it offers STARTTLS.

    With `is_smtps` it speaks TLS from the start. `login` is the user and password that it asks for,
    and `drips` lets each byte of its replies take DRIP_SECONDS.
    """

    tls: ssl.SSLContext | None = None
    is_smtps: bool = False
    login: tuple[str, str] | None = None
    drips: bool = False
    held: str | None = None
    replies: dict[str, str] = field(default_factory=dict)
    # The received commands, without their arguments.
    commands: list[str] = field(default_factory=list)
    mails: list[Mail] = field(default_factory=list)

    def __enter__(self) -> "MailServer":
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """The value of TASKSERVICE_SMTP_URL."""
        user = "{}:{}@".format(*self.login) if self.login else ""
        return f"smtp{'s' if self.is_smtps else ''}://{user}127.0.0.1:{self.port}"

    def wait_for(self, count: int, timeout: float = PATIENCE_SECONDS) -> list[Mail]:
        """The emails, as soon as there are `count`; AssertionError after `timeout` seconds."""
        self._wait(lambda: len(self.mails) >= count, timeout)
        return list(self.mails)

    def wait_for_command(self, command: str) -> None:
        """Return when the command has arrived; AssertionError after a minute."""
        self._wait(lambda: command in self.commands, PATIENCE_SECONDS)

    def _wait(self, arrived: Callable[[], bool], timeout: float) -> None:
        with self._changed:
            assert self._changed.wait_for(arrived, timeout), (
                f"{self.commands} and {len(self.mails)} mails came in {timeout} s"
            )

    def add(self, command: str, mail: Mail | None = None) -> None:
        """Record a received command."""
        with self._changed:
            self.commands.append(command)
            if mail is not None:
                self.mails.append(mail)
            self._changed.notify_all()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        handler = _Handler(self)
        connections: list[_Connection] = []

        def connect() -> _Connection:
            connections.append(_Connection(self, handler, loop=self._loop, **options))
            return connections[-1]

        options: dict[str, Any] = {
            "tls_context": None if self.is_smtps else self.tls,
            # It sees no TLS below it; whether somebody has logged in is our handler's question.
            "auth_require_tls": self.tls is not None and not self.is_smtps,
        }
        context = self.tls if self.is_smtps else None
        server = await self._loop.create_server(connect, sock=self._listener, ssl=context)
        self._started.set()
        await self._stop.wait()
        server.close()
        for connection in connections:
            connection.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Handler:
    """Decides on each command of a connection."""

    def __init__(self, server: MailServer) -> None:
        self._server = server

    async def status(self, command: str, mail: Mail | None = None) -> Any:
        """The reply that is set for a command; MISSING to accept it."""
        reply = self._server.replies.get(command, MISSING)
        self._server.add(command, mail if reply is MISSING else None)
        if self._server.held == command:
            await asyncio.Event().wait()
        return reply

    async def handle_EHLO(  # noqa: N802
        self, smtp: SMTP, session: Session, envelope: Envelope, name: str, replies: list[str]
    ) -> list[str]:
        reply = await self.status("EHLO")
        session.host_name = name
        return replies if reply is MISSING else [reply]

    async def handle_MAIL(  # noqa: N802
        self, smtp: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        reply = await self.status("MAIL")
        if self._server.login and not session.authenticated:
            return "530 Authentication required"
        return reply

    async def handle_RCPT(  # noqa: N802
        self, smtp: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        return await self.status("RCPT")

    async def handle_DATA(self, smtp: SMTP, session: Session, envelope: Envelope) -> Any:  # noqa: N802
        login = session.auth_data
        mail = Mail(
            str(envelope.mail_from),
            envelope.rcpt_tos,
            cast(bytes, envelope.content),
            is_encrypted=cast(Any, smtp.transport).get_extra_info("sslcontext") is not None,
            user=login.login.decode() if isinstance(login, LoginPassword) else None,
        )
        return await self.status("END", mail)


class _Connection(SMTP):
    """One connection."""

    def __init__(self, server: MailServer, handler: _Handler, **options: Any) -> None:
        super().__init__(handler, authenticator=self._check_login, **options)
        self._server = server
        self._is_new = True

    def abort(self) -> None:
        """End the connection, if it has not ended."""
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()

    async def push(self, status: Any) -> None:
        if self._is_new:
            self._is_new = False
            reply = await self.event_handler.status("GREETING")
            status = status if reply is MISSING else reply
        if not status:
            self.abort()
        elif not self._server.drips:
            await super().push(status)
        else:
            for byte in f"{status}\r\n".encode():
                self._writer.write(bytes([byte]))
                await asyncio.sleep(DRIP_SECONDS)

    async def smtp_STARTTLS(self, arg: str) -> None:  # noqa: N802
        reply = await self.event_handler.status("STARTTLS")
        await (super().smtp_STARTTLS(arg) if reply is MISSING else self.push(reply))

    async def smtp_DATA(self, arg: str | None) -> None:  # noqa: N802
        reply = await self.event_handler.status("DATA")
        await (super().smtp_DATA(arg) if reply is MISSING else self.push(reply))

    def _check_login(
        self, smtp: SMTP, session: Session, envelope: Envelope, mechanism: str, login: Any
    ) -> AuthResult:
        self._server.add("AUTH")
        is_known = (login.login.decode(), login.password.decode()) == self._server.login
        return AuthResult(success=is_known, handled=False, auth_data=login)
