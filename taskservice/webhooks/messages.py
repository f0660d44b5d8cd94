"""Messages about events: texts for people in ntfy, Slack and email, and signed webhooks."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from taskservice import quantities, terms
from taskservice.event_kinds import AGENT_LATE, EVENTS, TASK_ASKS, EventKind
from taskservice.terminal import escaped, escaped_lines, shortened
from taskservice.webhooks import signing

# Maximum lengths in characters. If a message is too long, its reason or question is shortened to
# the next of these lengths. A question is shown whole if possible.
NAME_LENGTH = 80
TITLE_LENGTH = 150
REASON_LENGTHS = (500, 120, 40)
QUESTION_LENGTHS = (*range(3_500, 500, -100), *REASON_LENGTHS)
LINE_REASON_LENGTH = 120
MAX_LINES = 20  # the maximum number of events that a message lists
LABEL_LENGTH = 40
# ntfy sends up to 4,000 bytes of a message to phones, turns a message above 4,096 bytes into an
# attachment, and refuses a body above 8,192 bytes. NTFY_BYTES limits the whole body, including the
# buttons.
NTFY_BYTES = 4_000
NTFY_BUTTONS_BYTES = 1_500
NTFY_BUTTONS = 3
NTFY_DEFAULT, NTFY_HIGH = 3, 4  # priorities
SLACK_LENGTH = 2_000  # the limit of Discord; Mattermost and Slack accept more

_NTFY_TOPIC = re.compile("[-_A-Za-z0-9]{1,64}")


# In Slack, `&`, `<` and `>` must be escaped as in HTML. Discord and Mattermost decode these
# escapes, and then interpret Markdown and mentions, such as `@here`, `<#1>`, `[text](url)` and
# `~channel`. An invisible space after a special character prevents this. A backtick is replaced,
# since a code block would hide the links after it. All three services turn `https://example.com`
# into a link, and some of them also `example.com`.
_SPACE = "\u200b"
_SLACK_ESCAPES: dict[int, str] = str.maketrans(
    {"&": "&amp;", "<": f"&lt;{_SPACE}", ">": "&gt;", "`": "'"}
    | {sign: f"{sign}{_SPACE}" for sign in "@]~"}
)
_JOINTS_OF_LINKS = re.compile(r":(?=//)|\.(?=[^\W\d_])")


class Notice(NamedTuple):
    """One event in a message for a person."""

    kind: EventKind
    at: str  # RFC 3339
    agent: str  # the agent's name, or else its ID
    task: str | None = None  # the name of the task
    reason: str | None = None  # the whole text of the error or of the question
    seconds: float | None = None  # how long the task ran
    since: str | None = None  # see `EventKind.since`
    on_time: bool | None = None  # agent.back: the run was on time, only its report was late
    url: str | None = None  # the URL of the task or agent page
    answer_url: str | None = None
    # For each button, its label and the form-encoded body of its POST.
    choices: Sequence[tuple[str, str]] = ()
    # If a task has several events at the same time, only the most important event is listed.
    task_id: str | None = None
    agent_id: str = ""  # only the last state of each agent and each task is listed


class Message(NamedTuple):
    """A webhook, or a message for people as JSON or as an email."""

    url: str
    body: bytes
    subject: str = ""  # the subject of an email, whose text is in `body`
    id: str = ""
    headers: Mapping[str, str] = {}
    secrets: Sequence[str] | None = None  # the secrets that sign a webhook
    hook: Any = None  # the row of the hook; None for a callback
    text: str | None = None  # the text for people, without links

    def headers_now(self) -> dict[str, str]:
        headers = {"content-type": "application/json", **self.headers}
        if self.secrets is not None:
            headers |= signing.sign(self.secrets, self.id, int(time.time()), self.body)
        return headers


def ntfy_address(target: str) -> tuple[str, str]:
    """Split the URL of a topic into the URL to post to, and the topic; raises ValueError."""
    parts = urlsplit(target)
    root, _, topic = parts.path.rstrip("/").rpartition("/")
    if not _NTFY_TOPIC.fullmatch(topic):
        raise ValueError("The URL does not end with a topic of 1 to 64 letters, digits, - and _.")
    return urlunsplit(parts._replace(path=f"{root}/")), topic


def ntfy(target: str, notices: Sequence[Notice], count: int) -> Message:
    """A message for ntfy; `notices` describe the first of `count` events."""
    notices, unlisted = _distinct(notices), count - len(notices)
    first, is_alone = notices[0], len(notices) + unlisted == 1
    url, topic = ntfy_address(target)
    fields: dict[str, object] = {
        "topic": topic,
        "title": _title(notices, unlisted),
        "tags": [first.kind.tag],
        "priority": NTFY_HIGH if first.kind.is_urgent else NTFY_DEFAULT,
    }
    if is_alone and (click := first.answer_url or first.url):
        fields["click"] = click
    for text, is_whole in _texts(notices, unlisted, has_links=not is_alone):
        if is_alone and (buttons := _buttons(first, is_whole)):
            fields["actions"] = buttons
        body = json.dumps(fields | {"message": text}, ensure_ascii=False).encode()
        if len(body) <= NTFY_BYTES:
            break
    return Message(url, body)


def slack(target: str, notices: Sequence[Notice], count: int) -> Message:
    """A message for Slack, Mattermost, or Discord's `/slack`."""
    notices, unlisted = _distinct(notices), count - len(notices)
    title = _escaped_for_slack(_title(notices, unlisted))
    for text, _ in _texts(notices, unlisted, _escaped_for_slack):
        if len(title) + 1 + len(text) <= SLACK_LENGTH:
            break
    return Message(target, json.dumps({"text": f"{title}\n{text}"}).encode())


def _escaped_for_slack(text: str) -> str:
    return _JOINTS_OF_LINKS.sub(rf"\g<0>{_SPACE}", text.translate(_SLACK_ESCAPES))


def mail(target: str, notices: Sequence[Notice], count: int) -> Message:
    notices, unlisted = _distinct(notices), count - len(notices)
    title, (text, _) = _title(notices, unlisted), next(_texts(notices, unlisted))
    reason = notices[0].reason if len(notices) + unlisted == 1 else None
    subject = f"{title}: {_line(reason, TITLE_LENGTH)}" if reason else title
    return Message(target, f"{title}\n\n{text}\n".encode(), shortened(subject, TITLE_LENGTH))


def plain(notices: Sequence[Notice], count: int) -> str:
    """The text that is stored with an attempt: the title, and the text without links."""
    notices, unlisted = _distinct(notices), count - len(notices)
    text, _ = next(_texts(notices, unlisted, has_links=False))
    return f"{_title(notices, unlisted)}\n{text}".rstrip()


FORMATS = {terms.NTFY: ntfy, terms.SLACK: slack, terms.MAIL: mail}


def _buttons(notice: Notice, is_whole: bool) -> list[dict[str, object]]:
    """A button for each choice; none if ntfy would refuse them.

    If the message does not show the whole question, or a button its whole choice, the only button
    opens the page: nobody can allow what was not shown.
    """
    labels = [_line(label, LABEL_LENGTH + 1) for label, _ in notice.choices]
    if not is_whole or any(len(label) > LABEL_LENGTH for label in labels):
        link = notice.answer_url or notice.url
        return [{"action": "view", "label": "Open", "url": link}] if link else []
    buttons: list[dict[str, object]] = [
        {
            "action": "http",
            "label": label,
            "url": notice.answer_url,
            "method": "POST",
            "headers": {"Content-Type": "application/x-www-form-urlencoded"},
            "body": body,
            "clear": True,
        }
        for label, (_, body) in zip(labels, notice.choices, strict=True)
    ]
    size = len(json.dumps(buttons, ensure_ascii=False).encode())
    is_valid = len(buttons) <= NTFY_BUTTONS and all(labels)
    return buttons if is_valid and size <= NTFY_BUTTONS_BYTES else []


def _distinct(notices: Sequence[Notice]) -> list[Notice]:
    """The notices to list, the most important first, with names that fit into a line."""
    latest: dict[object, Notice] = {}
    state: object
    for index, notice in enumerate(sorted(notices, key=attrgetter("at"))):
        state = notice.agent_id or notice.agent if notice.kind.is_of_agent else None
        state = notice.task_id if notice.kind.is_of_task else state
        if notice.kind == AGENT_LATE:
            # A late agent can also be broken, so that both states are listed.
            state = (state, AGENT_LATE.name)
        elif notice.kind.is_of_agent:
            latest.pop((state, AGENT_LATE.name), None)
        latest[index if state is None else state] = notice
    distinct: dict[object, Notice] = {}
    ordered = sorted(latest.values(), key=lambda notice: EVENTS.index(notice.kind.name))
    for index, notice in enumerate(ordered):
        end = (notice.task_id, notice.at) if notice.task_id else index
        distinct.setdefault(end, notice)
    return [
        notice._replace(
            agent=_line(notice.agent, NAME_LENGTH),
            task=notice.task and _line(notice.task, NAME_LENGTH),
        )
        for notice in distinct.values()
    ]


def _title(notices: Sequence[Notice], unlisted: int) -> str:
    """A title such as `nightly failed` or `2 agents broke: nightly, weekly; 5 more`."""
    parts = []
    for kind, of_kind in groupby(notices, attrgetter("kind")):
        names = [notice.agent for notice in of_kind]
        different = list(dict.fromkeys(names))
        number = len(different if kind.is_of_agent else names)
        if number == 1:
            parts.append(kind.title.format(names[0]))
        else:
            parts.append(f"{kind.several.format(number)}: {', '.join(different)}")
    if unlisted:
        parts.append(f"{unlisted} more")
    return shortened("; ".join(parts), TITLE_LENGTH)


def _texts(
    notices: Sequence[Notice],
    unlisted: int,
    escape: Callable[[str], str] = str,
    has_links: bool = True,
) -> Iterator[tuple[str, bool]]:
    """Yield the text below the title, then shorter versions, each with whether its question is
    whole; `escape` is not applied to links.
    """
    links = [(notice.answer_url or notice.url) if has_links else None for notice in notices]
    if len(notices) + unlisted == 1:
        for reason, is_whole in _reasons(notices[0]):
            text = "\n".join(filter(None, [reason, *_details(notices[0])]))
            yield "\n".join(filter(None, [escape(text), links[0]])), is_whole
        return
    lines = []
    for notice, link in zip(notices, links, strict=True):
        reason = _line(notice.reason or "", LINE_REASON_LENGTH)
        what = ": ".join(filter(None, [notice.kind.title.format(notice.agent), reason]))
        details = escape(f"- {what} ({'; '.join(_details(notice))})")
        lines.append(f"{details} {link}" if link else details)
    for end in range(min(len(lines), MAX_LINES), 0, -1):
        omitted = unlisted + len(lines) - end
        yield "\n".join([*lines[:end], *([f"- and {omitted} more"] if omitted else [])]), True


def _reasons(notice: Notice) -> Iterator[tuple[str, bool]]:
    """The reason or the question, then shorter versions, each with whether a question is whole."""
    if notice.kind != TASK_ASKS:
        for length in REASON_LENGTHS:
            yield _line(notice.reason or "", length), True
        return
    lines = (notice.reason or "").replace("\r\n", "\n").expandtabs()
    question = escaped_lines(lines).strip("\n")
    yield question, terms.CUT_HERE not in question
    note = "(cut; open the link to read all of it)" if notice.answer_url or notice.url else "(cut)"
    for length in QUESTION_LENGTHS:
        if length < len(question):
            yield f"{question[:length]}… {note}", False


def _details(notice: Notice) -> Iterator[str]:
    """The start and length of the state; then the task, its time and its duration."""
    if notice.since and notice.kind.since_line:
        since = _time(notice.since)
        passed = datetime.fromisoformat(notice.at) - datetime.fromisoformat(notice.since)
        length = quantities.seconds_text(passed.total_seconds())
        if notice.on_time:
            yield f"Due {since}; it ran on time, and reported late"
        else:
            yield notice.kind.since_line.format(since=since, length=length)
    if notice.kind != AGENT_LATE:
        task = f"Task {notice.task}" if notice.task and notice.task != notice.agent else None
        ran = None if notice.seconds is None else f"after {quantities.seconds_text(notice.seconds)}"
        yield ", ".join(filter(None, [task, _time(notice.at), ran]))


def _time(text: str) -> str:
    time = datetime.fromisoformat(text)
    return f"{time.day} {time:%b %H:%M} UTC"


def _line(text: str, length: int) -> str:
    """The text on one line, without control characters, which could change the text around it."""
    return shortened(escaped(" ".join(text.split())), length)
