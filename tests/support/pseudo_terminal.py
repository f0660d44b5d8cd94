"""A real terminal for commands, and characters that must not reach it."""

import os
import pty
import unicodedata
from collections.abc import Mapping, Sequence

from tests.support.fork_server import ForkedPopen

# A title, a cleared screen in two spellings, DEL, a backspace, next line, bidi, a line separator.
NASTY = "a\x1b]0;own\x07b\x1b[2Jc\x9b2Jd\x7fe\x08f\x85g\u202eh\u2066i\u200fj\u061ck\u2028l"
SHOWN = (
    r"a\u001b]0;own\u0007b\u001b[2Jc\u009b2Jd\u007fe\bf\u0085g\u202eh\u2066i\u200fj\u061ck\u2028l"
)


def on_terminal(
    command: Sequence[str], environment: Mapping[str, str], typed: Mapping[str, str] | None = None
) -> str:
    """All output of a command to its terminal.

    `typed` is what is typed at its prompts, by the end of each prompt.
    """
    ours, its = pty.openpty()
    waiting, written = dict(typed or {}), b""
    with ForkedPopen(command, env=environment, stdin=its, stdout=its, stderr=its):
        os.close(its)
        while part := _read(ours):
            written += part
            for prompt in [prompt for prompt in waiting if written.endswith(prompt.encode())]:
                os.write(ours, f"{waiting.pop(prompt)}\n".encode())
    os.close(ours)
    return written.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the last program on the terminal has ended
        return b""


def obeyed(text: str) -> list[str]:
    """The characters of a text that a terminal would obey or hide, line ends apart."""
    kinds = ("Cc", "Cf", "Zl", "Zp")
    return [character for character in text.replace("\n", "") if _kind(character) in kinds]


def _kind(character: str) -> str:
    return unicodedata.category(character)
