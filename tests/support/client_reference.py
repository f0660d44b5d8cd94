"""Writes the reference of the Python client, from its signatures and docstrings."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, get_args, is_typeddict

from taskservice import client

# Page -> what it describes, in this order. A table describes the exceptions.
CLIENT_PAGES = {
    "docs/reference/python-client.md": ("Client", "current"),
    "docs/reference/python-task.md": ("Task", "TaskHandler"),
}
_TYPES = (
    "Agent", "Annotations", "Expect", "Health", "FinishedTask", "Attention", "Hook", "Failure",
    "Question", "Line", "Status", "ErrorType", "Sort",
)  # fmt: skip
_METHODS_OF = ("Client", "Task")


def client_reference(page: str, width: int) -> str:
    """The sections of the page, in Markdown; the first page also describes the JSON types."""
    parts: list[str] = []
    for name in CLIENT_PAGES[page]:
        described = getattr(client, name)
        parts += [f"## {name}", *_section(name, described, width)]
        methods = vars(described).items() if name in _METHODS_OF else ()
        for method, function in methods:
            if not method.startswith("_") and function.__doc__:
                path = f"{name}.{method}"
                parts += [f"### {path}", *_section(path, function, width)]
    if page == next(iter(CLIENT_PAGES)):
        text = "These are plain dictionaries and strings. A `Timestamp` is an RFC 3339 string."
        parts += ["## JSON types", text]
        for name in _TYPES:
            parts += [f"### {name}", *_section(name, getattr(client, name), width)]
    return "\n\n".join(parts)


def _section(name: str, described: Any, width: int) -> Iterator[str]:
    """The signature or the members, and the docstring."""
    if values := get_args(described):
        texts = (f'`"{value}"`' for value in values)
        yield f"One of {', '.join(texts)}."
        return
    yield f"```python\n{_signature(name, described)}\n```"
    for block in (inspect.getdoc(described) or "").split("\n\n"):
        head, _, rest = block.partition(":\n")
        if head == "Example":
            yield f"```python\n{textwrap.dedent(rest)}\n```"
        elif head in ("Args", "Attributes", "Raises", "Returns"):
            yield f"{head.replace('Args', 'Arguments')}:"
            yield "\n".join(_entries(head, textwrap.dedent(rest), width))
        else:
            yield _filled(block, width)


def _entries(head: str, text: str, width: int) -> Iterator[str]:
    for entry in re.split(r"\n(?=\S)", text):
        marked = entry if head == "Returns" else re.sub(r"^([\w, ]+): ", r"`\1`: ", entry)
        yield _filled(f"- {marked}", width, "  ")


def _filled(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()), width, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _signature(name: str, described: Any) -> str:
    source: Any = described.fget if isinstance(described, property) else described
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(source))).body
    if isinstance(node, ast.ClassDef):
        if is_typeddict(described) or issubclass(described, tuple):
            members = (ast.unparse(line) for line in node.body if isinstance(line, ast.AnnAssign))
            return "\n    ".join([f"class {name}:", *members])
        (node,) = (line for line in node.body if getattr(line, "name", "") == "__init__")
        node.returns = None  # type: ignore[attr-defined]
    assert isinstance(node, ast.FunctionDef)
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if isinstance(described, property):
        return f"{name}{returned.replace(' ->', ':')}"
    parameters = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
    parameters = parameters.replace("=", " = ")
    if len(name + parameters + returned) > 90:
        lines = re.split(r", (?=\*|\w+: )", parameters)
        parameters = "".join(f"\n    {line}," for line in lines) + "\n"
    return f"{name}({parameters}){returned}"
