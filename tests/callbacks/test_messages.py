"""Messages for people: their words, their limits, and names and errors that want to be more."""

import html
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from taskservice import terms
from taskservice.event_kinds import (
    AGENT_BACK,
    AGENT_BROKEN,
    AGENT_FIXED,
    AGENT_LATE,
    KINDS,
    TASK_ASKS,
    TASK_ENDED,
    TASK_FAILED,
    TASK_HANGS,
    TASK_RECOVERED,
)
from taskservice.webhooks import messages
from taskservice.webhooks.messages import Notice

AT = "2026-11-28T13:36:05.123Z"
EARLIER = "2026-11-28T10:16:00.000Z"
LATER = "2026-11-28T13:40:00.000Z"
PAGE = "https://tasks.example/tasks/0193"
NTFY = "https://ntfy.example/alerts"
SLACK = "https://hooks.slack.com/services/T0/B0/x"
FAILED = Notice(
    AGENT_BROKEN, AT, "nightly", task="summary", reason="exit code 1", seconds=200.5, url=PAGE
)
ASKS = Notice(
    TASK_ASKS, AT, "deployer", task="deploy", reason="Deploy?", url=PAGE,
    answer_url="https://tasks.example/answer/abc",
    choices=[("yes", "ok=true"), ("no", "ok=false")],
)  # fmt: skip
LATE = Notice(AGENT_LATE, AT, "backup", since=EARLIER, url=PAGE)
HANGS = Notice(
    TASK_HANGS, AT, "backup", task="nightly", since=AT, task_id="0193", url=PAGE,
    reason="runs for 3 h 10 min, 7 times as long as usual; no line for 36 min",
)  # fmt: skip

# What a name, an error or a question can try.
HOSTILE = [
    "<!channel>", "<!here|here>", "<!everyone>", "<!subteam^S1>", "<@U123>", "<@!1>", "<@&1>",
    "<#C1|x>", "<#1>", "@channel", "@all", "@here", "@everyone", "x@everyone", "\\@everyone",
    "<https://evil.example|your page>", "[your page](https://evil.example)",
    "![x](https://evil.example/x.png)", "[x][1]\n\n[1]: https://evil.example", "[x] (https://e)",
    "&lt;!channel&gt;", "&#60;!channel&#62;", "&#64;everyone", "&commat;here", "&amp;lt;@1&amp;gt;",
    "```", "~~~", "`", "<t:1:R>", "</x:1>", "<id:home>", "<:x:1>", "<mailto:x@y|z>", "~off-topic",
    "<!date^1^{date}^https://evil.example|x>", "\r\nBcc: evil@example.org\r\n\r\nx", "\0",
    "\x1b[2J", "@bob", "https://evil.example/x", "see HTTP://127.0.0.1/x", "www.evil.example",
    "evil.example/x", "discord.gg/evil", "ftp://evil", "x://y",
    "=?utf-8?q?a=0D=0ABcc:_evil@example.org?=", "\u202eevil", "\u2028x", "\x85Bcc: x",
    '","actions":[{"action":"http"}],"x":"', "{}", "{0}", "%s", "\ud800", "", " ", "a\tb",
]  # fmt: skip


def ntfy(*notices: Notice, count: int | None = None) -> dict[str, Any]:
    made = messages.ntfy(NTFY, notices, count or len(notices))
    assert made.url == "https://ntfy.example/"
    assert len(made.body) <= 4_000
    fields: dict[str, Any] = json.loads(made.body)
    return fields


def slack(*notices: Notice, count: int | None = None) -> str:
    made = messages.slack(SLACK, notices, count or len(notices))
    assert made.url == SLACK
    [(name, text)] = json.loads(made.body).items()
    assert name == "text"
    assert len(text) <= 2_000
    return str(text)


def mail(*notices: Notice, count: int | None = None) -> tuple[str, str]:
    made = messages.mail("mailto:ann@example.org", notices, count or len(notices))
    assert len(made.subject) <= 150
    return made.subject, made.body.decode()


def shown(*notices: Notice, count: int | None = None) -> list[str]:
    """The message as the three services of the format `slack` read it, and the other texts."""
    text = slack(*notices, count=count)
    fields = ntfy(*notices, count=count)
    return [text, html.unescape(text), fields["title"], fields["message"], *mail(*notices)]


# The words.


def test_failure_says_who_why_when_how_long_and_where() -> None:
    when = "Task summary, 28 Nov 13:36 UTC, after 3 min 20 s"
    assert ntfy(FAILED) == {
        "topic": "alerts",
        "title": "nightly failed",
        "message": f"exit code 1\n{when}",
        "tags": ["warning"],
        "priority": 4,
        "click": PAGE,
    }
    assert slack(FAILED) == f"nightly failed\nexit code 1\n{when}\n{PAGE}"
    text = f"nightly failed\n\nexit code 1\n{when}\n{PAGE}\n"
    assert mail(FAILED) == ("nightly failed: exit code 1", text)


@pytest.mark.parametrize(
    ("notice", "title", "text", "priority"),
    [
        (FAILED._replace(kind=TASK_FAILED), "nightly failed",
         "exit code 1\nTask summary, 28 Nov 13:36 UTC, after 3 min 20 s", 4),
        (ASKS, "deployer asks", "Deploy?\nTask deploy, 28 Nov 13:36 UTC", 4),
        (LATE, "backup is late", "Due 28 Nov 10:16 UTC, 3 h 20 min late", 4),
        (Notice(AGENT_FIXED, AT, "nightly", task="nightly", seconds=12, since=EARLIER),
         "nightly works again",
         "Was broken for 3 h 20 min, from 28 Nov 10:16 UTC\n28 Nov 13:36 UTC, after 12 s", 3),
        (Notice(AGENT_BACK, AT, "backup", since=EARLIER, on_time=False),
         "backup ran again", "Due 28 Nov 10:16 UTC, 3 h 20 min late\n28 Nov 13:36 UTC", 3),
        (Notice(AGENT_BACK, AT, "backup", since=EARLIER, on_time=True), "backup ran again",
         "Due 28 Nov 10:16 UTC; it ran on time, and reported late\n28 Nov 13:36 UTC", 3),
        (HANGS, "backup hangs", f"{HANGS.reason}\nTask nightly, 28 Nov 13:36 UTC", 4),
        (HANGS._replace(kind=TASK_RECOVERED, since=EARLIER, reason=None), "backup no longer hangs",
         "Hung for 3 h 20 min, from 28 Nov 10:16 UTC\nTask nightly, 28 Nov 13:36 UTC", 3),
        (Notice(TASK_ENDED, AT, "x"), "x ended", "28 Nov 13:36 UTC", 3),
    ],
)  # fmt: skip
def test_each_event_has_its_words(notice: Notice, title: str, text: str, priority: int) -> None:
    fields = ntfy(notice)
    assert (fields["title"], fields["message"], fields["priority"]) == (title, text, priority)
    assert slack(notice).startswith(f"{title}\n{text}")


def test_every_event_can_be_told() -> None:
    for kind in KINDS.values():
        assert ntfy(Notice(kind, AT, "x", since=AT))["title"].startswith("x ")


def test_question_leads_to_its_answer() -> None:
    fields = ntfy(ASKS)
    assert fields["click"] == ASKS.answer_url
    assert fields["actions"] == [
        {
            "action": "http", "label": label, "url": ASKS.answer_url, "method": "POST",
            "headers": {"Content-Type": "application/x-www-form-urlencoded"},
            "body": body, "clear": True,
        }
        for label, body in ASKS.choices
    ]  # fmt: skip
    assert slack(ASKS).endswith(f"\n{ASKS.answer_url}")
    assert mail(ASKS)[0] == "deployer asks: Deploy?"


OPEN = {"action": "view", "label": "Open", "url": ASKS.answer_url}


def test_message_with_choices_shows_the_whole_question() -> None:
    question = "Allow Bash in shop?\n\n\trm -rf build/ &&\n\tgit push\n" + "x" * 2_500
    fields = ntfy(ASKS._replace(reason=question.replace("\n", "\r\n")))
    assert fields["message"].startswith(question.expandtabs() + "\nTask deploy, ")
    assert [button["label"] for button in fields["actions"]] == ["yes", "no"]
    [subject, text] = mail(ASKS._replace(reason=question + "y" * 1_300))
    assert f"{question.expandtabs()}{'y' * 1_300}\nTask deploy, " in text
    assert "\n" not in subject
    assert "Bash in shop?\n\n        rm -rf" in slack(ASKS._replace(reason=question))


def test_question_that_is_cut_says_so_and_can_only_be_opened() -> None:
    question = "\n".join(f"line {number} of the script" for number in range(180))
    note = "… (cut; open the link to read all of it)\nTask deploy, "
    long = ASKS._replace(reason=question)
    fields = ntfy(long)
    assert fields["message"].startswith(question[:3_000])
    assert note in fields["message"]
    assert fields["actions"] == [OPEN]
    assert note in slack(long)
    assert len(slack(long)) > 1_700
    assert f"{question}\nTask" in mail(long)[1]
    # Without PUBLIC_URL there is no link.
    without_link = ntfy(long._replace(url=None, answer_url=None, choices=[]))
    assert "… (cut)\nTask" in without_link["message"]
    assert "actions" not in without_link
    # `taskservice approve` cut it already, or a button can't show its whole choice.
    cut_before = f"Bash\n{terms.CUT_HERE}the middle of 9,000 characters is not shown)\nrm"
    for asks in (ASKS._replace(reason=cut_before), ASKS._replace(choices=[("y" * 41, "x=1")])):
        assert ntfy(asks)["actions"] == [OPEN]


@pytest.mark.parametrize(
    "choices",
    [
        [(str(number), "x=1") for number in range(4)],
        [("yes", "x=1"), (" ", "x=2")],
        [("yes", "x=" + "y" * 2_000)],
        [],
    ],
    ids=("four", "blank", "long", "none"),
)
def test_choices_that_ntfy_would_refuse_do_not_become_buttons(
    choices: Sequence[tuple[str, str]],
) -> None:
    assert "actions" not in ntfy(ASKS._replace(choices=choices))


def test_several_questions_have_no_buttons() -> None:
    fields = ntfy(ASKS, ASKS)
    assert not {"actions", "click"} & set(fields)
    assert fields["message"].count(str(ASKS.answer_url)) == 2


def test_several_events_are_one_message() -> None:
    broken = [FAILED._replace(agent=name) for name in ("a", "b", "c", "d")]
    title = "4 agents broke: a, b, c, d"
    line = f"- a failed: exit code 1 (Task summary, 28 Nov 13:36 UTC, after 3 min 20 s) {PAGE}"
    assert ntfy(*broken)["title"] == mail(*broken)[0] == slack(*broken).split("\n")[0] == title
    assert ntfy(*broken)["message"].split("\n")[0] == line
    assert [text.count("\n- ") for text in (slack(*broken), mail(*broken)[1])] == [4, 4]


def test_different_events_go_by_importance_and_the_rest_is_counted() -> None:
    fixed = Notice(AGENT_FIXED, AT, "nightly", since=EARLIER)
    ended = [Notice(TASK_ENDED, AT, "x") for _ in range(2)]
    fields = ntfy(*ended, fixed, LATE, count=25)
    assert fields["title"] == (
        "backup is late; nightly works again; 2 tasks ended: x; 21 more"
    )  # fmt: skip
    assert fields["priority"] == 4
    assert fields["message"].split("\n")[-1] == "- and 21 more"


def test_many_events_are_counted_and_twenty_are_listed() -> None:
    many = [FAILED._replace(agent=f"agent-{number}", url=None) for number in range(40)]
    subject, text = mail(*many, count=50)
    assert subject.startswith("40 agents broke: agent-0, agent-1, ")
    assert text.count("\n- agent-") == 20
    assert text.endswith("\n- and 30 more\n")


def test_one_agent_that_broke_twice_is_one_agent() -> None:
    assert ntfy(FAILED, FAILED._replace(at=EARLIER))["title"] == "nightly failed"


def test_last_state_of_each_agent_is_told() -> None:
    flip, other = FAILED._replace(agent="flip", agent_id="flip"), FAILED._replace(agent="z1")
    fixed = Notice(AGENT_FIXED, EARLIER, "flip", agent_id="flip", since=EARLIER)
    for notices in ([fixed, flip, other], [flip, other, fixed]):
        assert ntfy(*notices)["title"] == "2 agents broke: flip, z1"
    works = "z1 failed; flip works again"
    assert ntfy(flip, other, fixed._replace(at=LATER))["title"] == works
    # Two agents of one name are two.
    namesake = fixed._replace(agent_id="other")
    assert ntfy(flip, namesake)["title"] == "flip failed; flip works again"


def test_end_of_a_task_is_told_once() -> None:
    end = [
        FAILED._replace(kind=kind, task_id="0193")
        for kind in (TASK_ENDED, TASK_FAILED, AGENT_BROKEN)
    ]
    assert slack(*end) == slack(FAILED)
    late_report = FAILED._replace(kind=AGENT_FIXED, task_id="0193", at=LATER)
    assert slack(*end, late_report).count("\n- ") == 2


def test_last_state_of_each_task_that_hung_is_told() -> None:
    other = HANGS._replace(task_id="0194")
    assert ntfy(HANGS, other)["title"] == "2 tasks hang: backup"
    recovered = HANGS._replace(kind=TASK_RECOVERED, since=AT, at=LATER)
    assert ntfy(HANGS, other, recovered)["title"] == "backup hangs; backup no longer hangs"
    # Its end is listed once, as its own kind of event.
    failed = FAILED._replace(agent="backup", agent_id="backup", task_id="0193", at=LATER)
    assert ntfy(HANGS, recovered, failed)["title"] == "backup failed"
    fixed = failed._replace(kind=AGENT_FIXED, since=EARLIER)
    assert ntfy(HANGS, recovered, fixed)["title"] == "backup works again"
    ended = failed._replace(kind=TASK_ENDED)
    assert ntfy(HANGS, recovered, ended)["title"] == "backup no longer hangs"


def test_message_without_public_url_has_no_link() -> None:
    plain = FAILED._replace(url=None)
    assert "click" not in ntfy(plain)
    assert all("http" not in text for text in shown(plain))


# Limits.


def test_long_error_is_truncated_to_500_characters() -> None:
    [text] = {
        line for line in slack(FAILED._replace(reason="ü" * 4_000)).split("\n") if "ü" in line
    }
    assert text == "ü" * 499 + "…"


@pytest.mark.parametrize("character", ["x", "ü", "😀", "<", "&", '"', "\\", "\u202e", "@"])
def test_messages_stay_below_the_limits_of_their_services(character: str) -> None:
    long = FAILED._replace(
        agent=character * 200, task=character * 200, reason=character * 4_000, url=PAGE * 3
    )
    long_asks = ASKS._replace(
        agent=long.agent, reason=long.reason, choices=[(character * 300, "x=1")] * 3
    )
    for count in (1, 20, 500):
        notices = [long._replace(agent_id=str(number)) for number in range(min(count, 20))]
        fields = ntfy(*notices, count=count)
        assert len(fields["title"]) <= 150
        assert fields["message"]
        assert "failed" in fields["message" if count > 1 else "title"]
        slack(*notices, count=count)
        mail(*notices, count=count)
    assert ntfy(long_asks)["actions"] == [OPEN]


# What names, errors and questions can't do.


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_users_text_adds_nothing_but_text(hostile: str) -> None:
    harmless = [FAILED, ASKS, LATE]
    notices = [
        notice._replace(agent=hostile, task=notice.task and hostile, reason=hostile)
        for notice in harmless
    ]
    for together in ([notices[0]], [notices[1]], notices):
        text = slack(*together)
        # Slack: nothing but what our own words have.
        assert not set("<>`") & set(text)
        assert not re.search("&(?!(amp|lt|gt);)", text)
        # Discord and Mattermost, which undo the escapes.
        read = html.unescape(text)
        assert not re.search(r"@[^\u200b]|[<~][^\u200b]|\][^\u200b]", read)
        # No address but ours becomes a link.
        ours = [PAGE, str(ASKS.answer_url)]
        rest = re.sub("|".join(map(re.escape, ours)), "", read)
        assert not re.search(r"://|\w\.[a-zA-Z]", rest)
        # No other line than ours, unless a question is alone: an error can't imitate the message
        # of another agent.
        lines = len(slack(*harmless[: len(together)]).split("\n"))
        if together != [notices[1]]:
            assert len(text.splitlines()) <= lines
        fields = ntfy(*together)
        assert set(fields) <= {"topic", "title", "tags", "priority", "click", "actions", "message"}
        assert len(fields.get("actions", [])) == (2 if together == [notices[1]] else 0)
        subject, body = mail(*together)
        for part in (text, subject, body, fields["title"], fields["message"]):
            assert not re.search(
                r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e\ud800-\udfff]", part
            )
        assert len(subject.splitlines()) == 1


def test_ordinary_text_stays_readable() -> None:
    text = slack(FAILED._replace(reason="KeyError: 'a' in jobs[0] (x_y*z), see #12: 50 % & more"))
    assert html.unescape(text).replace("\u200b", "").split("\n")[1] == (
        "KeyError: 'a' in jobs[0] (x_y*z), see #12: 50 % & more"
    )


# ntfy.


@pytest.mark.parametrize(
    ("target", "url", "topic"),
    [
        ("https://ntfy.sh/alerts", "https://ntfy.sh/", "alerts"),
        ("https://ntfy.sh/alerts/", "https://ntfy.sh/", "alerts"),
        ("http://[::1]:80/a/b/my-topic_1", "http://[::1]:80/a/b/", "my-topic_1"),
        ("https://ntfy.sh/alerts?auth=x", "https://ntfy.sh/?auth=x", "alerts"),
    ],
)
def test_topic_is_the_last_part_of_the_path(target: str, url: str, topic: str) -> None:
    assert messages.ntfy_address(target) == (url, topic)


@pytest.mark.parametrize("path", ["", "/", "a b", "%41", "a.b", "x" * 65, "ü", "a,b"])
def test_url_without_a_topic_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="does not end with a topic"):
        messages.ntfy_address(f"https://ntfy.sh/{path}")
