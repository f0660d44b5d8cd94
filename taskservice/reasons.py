"""Finds the reason why a task failed, in its error message or at the end of its log."""

import re
from collections.abc import Sequence
from itertools import takewhile

# Maximum number of characters of a reason.
MAX_REASON = 500

# Matches a terminal escape sequence, for example for a colour.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[^\[\]])")
# Matches an error message that contains no reason.
_GENERIC = re.compile(
    r"(?:the agent reported an error|killed by signal .*|(?:failed|error)?:?\s*"
    r"(?:exit|exited|exited with)?\s*(?:status|code)?:?\s*\d*)\.?",
    re.IGNORECASE,
)
MAX_GENERIC = 100  # the maximum number of characters of a message without a reason
# Matches log lines without a reason, such as an exit status, or a command that `set -x` prints.
_NO_REASON = re.compile(r"\++ |exit status \d+$|make(\[\d+\])?: \*\*\* .*Error \d+$|Node\.js v\d")

# Patterns for lines of the tracebacks of Python, Java, Node.js and Go.
_PYTHON = re.compile(r"Traceback \(most recent call last\):$")
_PYTHON_DETAIL = re.compile(r"\s|(DETAIL|HINT|CONTEXT|QUERY|WHERE|LINE \d+):")
_PYTHON_GROUP = re.compile(r"  \| (\S*Group: .*)")
_STACK_LINE = re.compile(r"\s+at \S|\s+\.\.\. \d+ ")  # Java and Node.js
_AFTER_EXCEPTION = re.compile(r"\s|[})\]]|Caused by: |Node\.js v\d")
_CAUSE = re.compile(r"(?:Caused by: |\s+\[cause\]: )(.*)")
_EXCEPTION = re.compile(r'(Uncaught |Exception in thread ".*?" )?[\w.$]+(: |$| \[)')
MAX_EXCEPTION_LINES = 5
_JAVA_THREAD = re.compile(r'Exception in thread ".*?" ')
_GO = re.compile(r"panic: |fatal error: ")
_GO_STACK = re.compile(
    r"\s|goroutine \d+ |created by |\S+\(.*\)$|\[signal |exit status \d+$|\.\.\."
)


def reason(message: str, log_end: str = "") -> str:
    """The reason why a task failed; `log_end` is needed only if the message `is_generic`."""
    text = message.strip()
    if _PYTHON.match(text.partition("\n")[0]) or _exception(_visible_lines(message)):
        text = error_reason(message)
    elif is_generic(message) and (last := log_reason(log_end)):
        text = f"{text}: {last}" if text else last
    return text[:MAX_REASON]


def reason_line(message: str, log_end: str = "") -> str:
    """The first line of the reason why a task failed."""
    return reason(message, log_end).split("\n")[0].strip()


def is_generic(message: str) -> bool:
    """Whether an error message contains no reason, for example only an exit status."""
    return len(message) < MAX_GENERIC and bool(_GENERIC.fullmatch(error_reason(message)))


def error_reason(message: str) -> str:
    """The most useful line of an error message: the exception, or else the first line."""
    lines = _visible_lines(message)
    if not lines:
        return ""
    if _PYTHON.match(lines[0]):
        # The first line after the traceback names the exception, even if its text has more lines.
        return next((line for line in _after_traceback(lines)), lines[-1].strip())
    return _exception(lines) or lines[0].strip()


def log_reason(log_end: str) -> str:
    """The most useful line at the end of a log: the exception, or else the last line."""
    lines = _visible_lines(log_end)
    last = next((line for line in reversed(lines) if not _NO_REASON.match(line)), "")
    return (_exception(lines) or last.strip())[:MAX_REASON]


def without_escapes(text: str) -> str:
    return _ESCAPES.sub("", text)


def _visible_lines(text: str) -> list[str]:
    """The lines that contain visible text, as a terminal without colours would show them."""
    lines = (line.rstrip("\r").split("\r")[-1] for line in without_escapes(text).split("\n"))
    return [line.rstrip() for line in lines if line.strip()]


def _exception(lines: Sequence[str]) -> str:
    """The exception of the traceback at the end of these lines; empty without a traceback."""
    return _python_exception(lines) or _go_panic(lines) or _exception_with_stack(lines)


def _python_exception(lines: Sequence[str]) -> str:
    for start in range(len(lines) - 1, -1, -1):
        group = _PYTHON_GROUP.match(lines[start])
        if group and lines[-1].lstrip().startswith(("+", "|")):
            return group[1]
        if _PYTHON.match(lines[start]):
            after = _after_traceback(lines[start:])
            return after[0] if len(after) == 1 else ""
    return ""


def _after_traceback(lines: Sequence[str]) -> list[str]:
    """The lines after the last traceback: the exception, without its details, and later output."""
    start = max(number for number, line in enumerate(lines) if _PYTHON.match(line))
    after = list(takewhile(lambda line: not line.startswith("[SQL: "), lines[start + 1 :]))
    return [line for line in after if not _PYTHON_DETAIL.match(line)]


def _go_panic(lines: Sequence[str]) -> str:
    for start in range(len(lines) - 1, -1, -1):
        if _GO.match(lines[start]):
            stack = lines[start + 1 :]
            has_stack = any(line.startswith("goroutine ") for line in stack)
            return lines[start] if has_stack and all(map(_GO_STACK.match, stack)) else ""
    return ""


def _exception_with_stack(lines: Sequence[str]) -> str:
    """The exception above the stack trace at the end of these lines, or its root cause."""
    start = len(lines) - 1
    while start > 0 and _AFTER_EXCEPTION.match(lines[start]):
        start -= 1
    stack = lines[start + 1 :]
    if not any(map(_STACK_LINE.match, stack)):
        return ""
    if causes := [cause[1] for line in stack if (cause := _CAUSE.match(line))]:
        return causes[-1].strip()
    # The message of an exception can have several lines.
    above = reversed(lines[max(start - MAX_EXCEPTION_LINES, 0) : start + 1])
    named = (line for line in above if _EXCEPTION.match(line))
    return _JAVA_THREAD.sub("", next(named, lines[start]))
