"""Mail: addresses, the settings, and one delivery with every fault of the mail server."""

import email
import email.policy
import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flask import Flask

from taskservice.config import Config, ConfigError
from taskservice.webhooks import destinations, smtp
from taskservice.webhooks.interrupt import Interrupt, Interrupted
from taskservice.webhooks.outcome import Outcome
from tests.support.api_client import ApiClient, expect
from tests.support.certificates import Authority
from tests.support.deliveries import looping
from tests.support.mail_server import MailServer
from tests.support.marks import one_database
from tests.support.receiver import Receiver, drip, unused_port
from tests.support.waiting import PATIENCE_SECONDS, until

SENDER = "tasks@example.org"
RECIPIENT = "ann@example.net"
LOGIN = ("tasks", "pa:ss word+1")
SOON = 0.4  # a deadline that is meant to pass
LATE = 30.0  # one that is not
OVERDUE_MS = 10_000  # less than a server takes that drips its replies to the end


def deliver(
    url: str,
    seconds: float = LATE,
    subject: str = "nightly failed",
    text: str = "exit code 1\n",
    sender: str = SENDER,
    interrupt: Interrupt | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> Outcome:
    return smtp.send_mail(
        destinations.MailServer.parse(url), sender, RECIPIENT, subject, text,
        message_id="0193", seconds=seconds, interrupt=interrupt, confirm=confirm,
    )  # fmt: skip


@pytest.fixture
def tls(authority: Authority, trusted: None) -> ssl.SSLContext:
    """The context of a server whose certificate is trusted."""
    return authority.server("127.0.0.1")


# What arrives.


def test_mail_arrives_as_plain_text_from_a_program() -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    with MailServer() as server:
        outcome = deliver(server.url)
        [got] = server.wait_for(1)
    assert outcome.delivered
    assert outcome.status_code == 250
    assert outcome.message == "127.0.0.1 accepted the email."
    assert (got.sender, got.recipients, got.is_encrypted) == (SENDER, [RECIPIENT], False)
    message = got.message
    date = message["Date"].datetime
    assert before <= date <= datetime.now(UTC)
    assert dict(message.items()) == {
        "From": SENDER,
        "To": RECIPIENT,
        "Subject": "nightly failed",
        "Date": message["Date"],
        "Message-ID": "<0193@example.org>",
        "Auto-Submitted": "auto-generated",
        "Content-Type": 'text/plain; charset="utf-8"',
        "Content-Transfer-Encoding": "7bit",
        "MIME-Version": "1.0",
    }
    assert got.text == "exit code 1\n"


@pytest.mark.parametrize(
    ("sender", "name"),
    [
        ("Tasks <tasks@example.org>", "Tasks"),
        ("Tasks of Ann-Marie O'Neill Jr. <tasks@example.org>", "Tasks of Ann-Marie O'Neill Jr."),
        ('"Tasks, Inc. (nightly) @ work" <tasks@example.org>', "Tasks, Inc. (nightly) @ work"),
        ("Größe 😀 <tasks@example.org>", "Größe 😀"),
        ("<tasks@example.org>", ""),
    ],
)
def test_sender_can_have_a_name(sender: str, name: str, tmp_path: Path) -> None:
    environ = {"TASKSERVICE_DATA": str(tmp_path), "TASKSERVICE_MAIL_FROM": sender}
    config = Config.from_environment(environ)
    with MailServer() as server:
        assert deliver(server.url, sender=config.MAIL_FROM).delivered
        [got] = server.wait_for(1)
    assert got.sender == SENDER
    [address] = got.message["From"].addresses
    assert (address.display_name, address.addr_spec) == (name, SENDER)
    assert got.message["Message-ID"] == "<0193@example.org>"
    assert got.content.isascii()


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ("ünïcode 😀 failed: " + "ö" * 120, "Größe: 5 €\n"),
        ("x" * 150, "y" * 5_000 + "\n"),
        ("  two  blanks ", ".\n..\nFrom ann\n-- \nx\n.\n"),
        ("a: b; c, <d> (e) \"f\" 'g' \\h @i", "=?utf-8?q?x?=\n"),
        ("ü " * 70, "a b\tc\n\n\nd\n"),
    ],
    ids=("not ASCII", "long lines", "dots", "special characters", "many words"),
)
def test_subject_and_text_arrive_unchanged(subject: str, text: str) -> None:
    with MailServer() as server:
        assert deliver(server.url, subject=subject, text=text).delivered
        [got] = server.wait_for(1)
    assert got.message["Subject"].split() == subject.split()
    assert got.text == text
    assert max(map(len, got.content.splitlines())) <= 998
    assert got.content.isascii()


@pytest.mark.parametrize(
    "subject",
    [
        "=?utf-8?q?a=0D=0ABcc:_evil@example.org?= failed",
        "=?utf-8?q?a=0ABcc:_evil@example.org=0A=0Abody?=",
        "=?utf-8?b?eA0KQmNjOiBlQHg=?=",
        "=?=?utf-8?q?=0D=0ABcc:_e?=",
    ],
)
def test_subject_adds_no_header(subject: str) -> None:
    content = smtp.mail(SENDER, RECIPIENT, subject, "x", "0193")
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert len(message.keys()) == 9
    assert message["Bcc"] is None
    assert message["Subject"].replace("\u200b", "") == subject
    assert message.get_content().strip() == "x"


# Encryption and login.


@pytest.mark.parametrize("is_smtps", [False, True], ids=("STARTTLS", "smtps"))
@pytest.mark.parametrize("login", [None, LOGIN], ids=("no password", "password"))
def test_offered_encryption_is_used(
    tls: ssl.SSLContext, is_smtps: bool, login: tuple[str, str] | None
) -> None:
    with MailServer(tls=tls, is_smtps=is_smtps, login=login) as server:
        assert deliver(server.url).delivered
        [got] = server.wait_for(1)
    assert (got.is_encrypted, got.user) == (True, login[0] if login else None)
    assert server.commands.count("STARTTLS") == (not is_smtps)


def test_password_is_never_sent_unencrypted() -> None:
    with MailServer(login=LOGIN) as server:
        outcome = deliver(server.url)
    assert outcome.message == (
        f"127.0.0.1 on port {server.port} offers no encryption, "
        "so the password in TASKSERVICE_SMTP_URL was not sent."
    )
    assert not outcome.delivered
    assert not outcome.permanent
    assert server.commands == ["GREETING", "EHLO"]


@pytest.mark.parametrize("login", [None, LOGIN], ids=("no password", "password"))
@pytest.mark.parametrize("reply", ["454 TLS not available", "501 No"])
def test_refused_starttls_ends_the_attempt(
    tls: ssl.SSLContext, login: tuple[str, str] | None, reply: str
) -> None:
    with MailServer(tls=tls, login=login, replies={"STARTTLS": reply}) as server:
        outcome = deliver(server.url)
    assert not outcome.delivered
    assert not outcome.permanent
    assert server.commands == ["GREETING", "EHLO", "STARTTLS"]


@pytest.mark.parametrize("is_smtps", [False, True], ids=("STARTTLS", "smtps"))
@pytest.mark.parametrize("login", [None, LOGIN], ids=("no password", "password"))
def test_certificates_are_always_checked(
    authority: Authority, trusted: None, is_smtps: bool, login: tuple[str, str] | None
) -> None:
    contexts = {
        "certificate is not valid for '127.0.0.1'": authority.server("localhost"),
        "certificate has expired": authority.server("127.0.0.1", expired=True),
        "unable to get local issuer certificate": Authority().server("127.0.0.1"),
    }
    for reason, context in contexts.items():
        with MailServer(tls=context, is_smtps=is_smtps, login=login) as server:
            outcome = deliver(server.url)
        assert outcome.message.startswith("The certificate of 127.0.0.1 is refused: ")
        assert reason in outcome.message
        assert not outcome.permanent
        assert "AUTH" not in server.commands
        assert server.mails == []


def test_wrong_password_is_the_operators_fault(
    tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with MailServer(tls=tls, login=LOGIN) as server:
        outcome = deliver(server.url.replace("pa:ss", "hidden"))
    assert outcome == Outcome(
        f"127.0.0.1 on port {server.port} refused the login in TASKSERVICE_SMTP_URL.",
        duration_ms=outcome.duration_ms,
    )
    assert server.mails == []
    assert "hidden" not in caplog.text


def test_server_without_logins_gets_no_password(tls: ssl.SSLContext) -> None:
    with MailServer(tls=tls, replies={"EHLO": "250-x\r\n250 STARTTLS"}) as server:
        outcome = deliver(server.url.replace("//", "//tasks:hidden@"))
    assert outcome.message.endswith(" refused the login in TASKSERVICE_SMTP_URL.")


# Refusals.


@pytest.mark.parametrize(
    ("command", "reply", "message", "is_permanent"),
    [
        ("RCPT", "550 5.1.1 No such user", "refused the recipient with 550.", True),
        ("RCPT", "450 4.2.0 Greylisted", "refused the recipient for now with 450.", False),
        ("RCPT", "421 Busy", "refused the recipient for now with 421.", False),
        ("MAIL", "553 5.7.1 No", "refused the sender in TASKSERVICE_MAIL_FROM with 553.", False),
        ("DATA", "451 Later", "refused the email for now with 451.", False),
        ("END", "554 5.7.1 Spam", "refused the email with 554.", False),
        ("END", "452 4.3.1 Full", "refused the email for now with 452.", False),
    ],
)
def test_refusal_says_what_is_refused(
    command: str, reply: str, message: str, is_permanent: bool
) -> None:
    with MailServer(replies={command: reply}) as server:
        outcome = deliver(server.url)
        assert outcome == Outcome(
            f"127.0.0.1 {message}",
            permanent=is_permanent,
            status_code=int(reply[:3]),
            answer=reply[4:],
            duration_ms=outcome.duration_ms,
        )
        assert server.mails == []
        # What was put off is accepted later.
        server.replies.clear()
        assert deliver(server.url).delivered


@pytest.mark.parametrize("greeting", ["554 No service", "421 Busy", "HTTP/1.1 400 Bad Request"])
def test_server_that_takes_no_mail_is_explained(greeting: str) -> None:
    with MailServer(replies={"GREETING": greeting}) as server:
        outcome = deliver(server.url)
    assert outcome.message == f"127.0.0.1 on port {server.port} accepts no email now."
    assert (outcome.permanent, outcome.status_code) == (False, None)


@pytest.mark.parametrize("command", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "END"])
def test_closed_connection_is_a_failure_that_passes(command: str) -> None:
    with MailServer(replies={command: ""}) as server:
        outcome = deliver(server.url)
    assert outcome.message == "127.0.0.1 ended the connection."
    assert (outcome.delivered, outcome.permanent) == (False, False)


def test_server_that_is_not_reached_is_a_failure_that_passes() -> None:
    port = unused_port()
    with MailServer() as server:
        for url, message in (
            (f"smtp://127.0.0.1:{port}", f"127.0.0.1 refused a connection to port {port}."),
            ("smtp://no-such-host.invalid", "no-such-host.invalid can't be resolved"),
            (f"smtps://127.0.0.1:{server.port}", "127.0.0.1 does not speak TLS on port"),
        ):
            outcome = deliver(url)
            assert outcome.message.startswith(message)
            assert outcome[1:4] == (False, False, None)


def test_endless_reply_ends_the_attempt() -> None:
    with MailServer(replies={"EHLO": "\r\n".join(["250-x" * 100] * 1_000)}) as server:
        outcome = deliver(server.url)
    assert outcome.message == "127.0.0.1 ended the connection."


# Time.


def test_dripping_server_does_not_outlast_the_deadline() -> None:
    with MailServer(drips=True, replies={"GREETING": "220 " + "x" * 500}) as server:
        outcome = deliver(server.url, seconds=SOON)
    assert outcome.message == "127.0.0.1 did not accept the email within 0.4 s."
    assert outcome.duration_ms < OVERDUE_MS
    assert not outcome.permanent


@pytest.mark.parametrize("command", ["GREETING", "EHLO", "STARTTLS", "MAIL", "RCPT", "DATA", "END"])
def test_silent_server_does_not_outlast_the_deadline(tls: ssl.SSLContext, command: str) -> None:
    with MailServer(tls=tls if command == "STARTTLS" else None, held=command) as server:
        outcome = deliver(server.url, seconds=SOON)
    assert outcome.message == "127.0.0.1 did not accept the email within 0.4 s."
    assert not outcome.permanent


def test_silence_in_a_handshake_does_not_outlast_the_deadline() -> None:
    with Receiver(answer=drip(b"x" * 1_000)) as receiver:
        outcome = deliver(f"smtps://127.0.0.1:{receiver.port}", seconds=SOON)
    assert not outcome.delivered
    assert outcome.duration_ms < OVERDUE_MS


# Leases and shutdown.


def test_lost_lease_ends_the_attempt_before_the_mail_is_sent() -> None:
    commands = []

    def confirm() -> None:
        commands.append(list(server.commands))
        if len(commands) == 1:
            raise LookupError("the lease is lost")

    with MailServer() as server:
        with pytest.raises(LookupError):
            deliver(server.url, confirm=confirm)
        assert server.mails == []
        assert "DATA" not in server.commands
        server.commands.clear()
        assert deliver(server.url, confirm=confirm).delivered
    # It is asked for once in each attempt.
    assert commands == [["GREETING", "EHLO", "MAIL", "RCPT"]] * 2


@pytest.mark.parametrize("command", ["GREETING", "STARTTLS", "MAIL", "END"])
def test_interrupt_ends_an_attempt_that_waits(tls: ssl.SSLContext, command: str) -> None:
    interrupt, raised = Interrupt(), threading.Event()

    def attempt() -> None:
        try:
            deliver(server.url, interrupt=interrupt)
        except Interrupted:
            raised.set()

    with MailServer(tls=tls, held=command) as server:
        threading.Thread(target=attempt, daemon=True).start()
        server.wait_for_command(command)
        interrupt.set()
        assert raised.wait(PATIENCE_SECONDS)


def test_interrupt_before_the_attempt_sends_nothing() -> None:
    interrupt = Interrupt()
    interrupt.set()
    with MailServer() as server, pytest.raises(Interrupted):
        deliver(server.url, interrupt=interrupt)
    assert "MAIL" not in server.commands


# A hook.


@pytest.fixture
def config(standard_config: Config, mail_server: MailServer) -> Config:
    return replace(
        standard_config, SMTP_URL=destinations.MailServer.parse(mail_server.url), MAIL_FROM=SENDER
    )


@one_database
def test_hook_sends_mail(
    app: Flask,
    alice: ApiClient,
    mail_server: MailServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="taskservice")
    hook = expect(alice.post("/hook", json={"target": f"mailto:{RECIPIENT}"}), 201)
    task = alice.start(claim=True)
    alice.report(task, error={"message": "exit code 1"}, status="error")
    with looping(app):
        [got] = mail_server.wait_for(1)
        until(lambda: "accepted the email" in caplog.text)
    # The domain tells operators enough; an address is a person's.
    assert " to example.net: 127.0.0.1 accepted the email." in caplog.text
    assert RECIPIENT not in caplog.text
    assert (got.sender, got.recipients) == (SENDER, [RECIPIENT])
    assert got.message["Subject"] == "summarizer failed: exit code 1"
    assert f"http://127.0.0.1:8000/tasks/{task['id']}\n" in got.text
    mail_server.replies["RCPT"] = "550 No such user"
    assert expect(alice.post(f"/hook/{hook['id']}/test"), 200) == {
        "delivered": False,
        "statusCode": 550,
        "message": "127.0.0.1 refused the recipient with 550.",
    }


# Addresses and settings.


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("mailto:ann@example.org", "ann@example.org"),
        ("MAILTO:Ann.B+tasks@sub.Example.org", "Ann.B+tasks@sub.Example.org"),
        ("mailto:o'neil@example.org", "o'neil@example.org"),
        ("mailto:a%2Bb@example.org", "a+b@example.org"),
        ("mailto:root@localhost", "root@localhost"),
        (f"mailto:{'a' * 64}@example.org", f"{'a' * 64}@example.org"),
    ],
)
def test_target_with_one_address_is_read(target: str, address: str) -> None:
    assert destinations.mail_address(target) == address


@pytest.mark.parametrize(
    "target",
    [
        "ann@example.org", "mailto:", "mailto:ann", "mailto:@example.org", "mailto:ann@",
        "mailto://ann@example.org", "mailto:ann@example.org?subject=x", "mailto:ann@example.org#x",
        "mailto:ann@example.org?", "mailto:ann@example.org,bob@example.org", "mailto:a b@x.org",
        "mailto:ann@example.org%2Cbob@example.org", "mailto:ann@example.org%0D%0ARCPT%20TO:<b@x>",
        "mailto:ann@example.org\nBcc: b@x", "mailto:ann@example.org\n", "mailto:a%00b@example.org",
        "mailto:<ann@example.org>", "mailto:Ann <ann@example.org>", "mailto:jürgen@example.org",
        "mailto:ann@bücher.example", "mailto:ann@-x.org", "mailto:ann@x..org", "mailto:.a@x.org",
        "mailto:a..b@x.org", "mailto:a.@x.org", 'mailto:"a b"@x.org', "mailto:ann@[127.0.0.1]",
        "mailto:a@b@x.org", f"mailto:{'a' * 65}@example.org", f"mailto:a@{'b' * 64}.org",
        "mailto:a@" + "b." * 130 + "org", "mailto:ann@example.org.", "http:ann@example.org",
        "mailto:ann@example.org%ZZ", "mailto:ann@exa_mple.org", "mailto:\udcff@example.org",
    ],
    ids=ascii,
)  # fmt: skip
def test_target_without_exactly_one_address_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"^The target must be mailto: .*\.$") as caught:
        destinations.mail_address(target)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "login"),
    [
        ("smtp://mail.example", "smtp", "mail.example", 587, ("", "")),
        ("SMTPS://Mail.example/", "smtps", "mail.example", 465, ("", "")),
        ("smtp://[::1]:25", "smtp", "::1", 25, ("", "")),
        ("smtp://[::1]", "smtp", "::1", 587, ("", "")),
        ("smtp://ann%40x.org:p%40%2F:%25@mail.example:2525", "smtp", "mail.example", 2525,
         ("ann@x.org", "p@/:%")),
    ],
)  # fmt: skip
def test_url_of_the_server_is_read(
    url: str, scheme: str, host: str, port: int, login: tuple[str, str]
) -> None:
    server = destinations.MailServer.parse(url)
    assert (server.at.scheme, server.at.host, server.at.port) == (scheme, host, port)
    assert (server.user, server.password) == login
    assert not login[1] or login[1] not in repr(server)


def test_password_is_not_shown_with_the_settings(tmp_path: Path) -> None:
    environ = {
        "TASKSERVICE_DATA": str(tmp_path),
        "TASKSERVICE_SMTP_URL": "smtp://tasks:hidden@mail.example",
    }
    with pytest.raises(ConfigError, match="MAIL_FROM: is required with TASKSERVICE_SMTP_URL"):
        Config.from_environment(environ)
    config = Config.from_environment(environ | {"TASKSERVICE_MAIL_FROM": SENDER})
    assert config.MAIL_FROM == SENDER
    assert config.SMTP_URL is not None
    assert config.SMTP_URL.password == "hidden"
    assert "hidden" not in repr(config)
