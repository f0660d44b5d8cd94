"""How each client of MCP is told of the service: for the documents, the command and the page."""

import json
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

MCP_PATH = "/mcp"
# The environment variable from which a client reads the key, so that no file contains it.
KEY_VARIABLE = "TASKSERVICE_APIKEY"
_SERVER = "taskservice"


class McpClient(NamedTuple):
    """A client, and where the lines belong that tell it of the service."""

    name: str
    title: str
    # The file that contains them; None: they are a command.
    file: str | None
    # Address of `/mcp` -> the lines.
    lines: Callable[[str], str]

    @property
    def where(self) -> str:
        return "run this" if self.file is None else f"in {self.file}"

    def text(self, service_url: str) -> str:
        """What to run, or the file's content, for the service at this address."""
        return self.lines(service_url.rstrip("/") + MCP_PATH)


def _claude_code(url: str) -> str:
    header = shlex.quote(f"Authorization: Bearer ${{{KEY_VARIABLE}}}")
    server = f"--scope user --transport http {_SERVER} {shlex.quote(url)}"
    return f"claude mcp add {server} \\\n  --header {header}"


def _codex(url: str) -> str:
    key = f"--bearer-token-env-var {KEY_VARIABLE}"
    return f"codex mcp add {_SERVER} --url {shlex.quote(url)} \\\n  {key}"


def _gemini(url: str) -> str:
    header = shlex.quote(f"Authorization: Bearer ${KEY_VARIABLE}")
    server = f"--scope user --transport http {_SERVER} {shlex.quote(url)}"
    return f"gemini mcp add {server} \\\n  --header {header}"


def _opencode(url: str) -> str:
    header = shlex.quote(f"Authorization=Bearer {{env:{KEY_VARIABLE}}}")
    return f"opencode mcp add {_SERVER} --url {shlex.quote(url)} \\\n  --header {header}"


def _vs_code(url: str) -> str:
    asked = {"type": "promptString", "id": "taskservice-key", "password": True}
    return _json(
        {
            "inputs": [asked | {"description": "Key of taskservice"}],
            "servers": {
                _SERVER: {
                    "type": "http",
                    "url": url,
                    "headers": {"Authorization": "Bearer ${input:taskservice-key}"},
                }
            },
        }
    )


def _cursor(url: str) -> str:
    headers = {"Authorization": f"Bearer ${{env:{KEY_VARIABLE}}}"}
    return _json({"mcpServers": {_SERVER: {"url": url, "headers": headers}}})


def _inspector(url: str) -> str:
    header = f'"Authorization: Bearer ${KEY_VARIABLE}"'
    server = f"{shlex.quote(url)} --transport http"
    return (
        f"npx @modelcontextprotocol/inspector --cli {server} \\\n"
        f"  --header {header} --method tools/list"
    )


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2)


CLIENTS = {
    client.name: client
    for client in (
        McpClient("claude-code", "Claude Code", None, _claude_code),
        McpClient("codex", "Codex", None, _codex),
        McpClient("gemini", "Gemini CLI", None, _gemini),
        McpClient("opencode", "opencode", None, _opencode),
        McpClient("vscode", "VS Code", ".vscode/mcp.json", _vs_code),
        McpClient("cursor", "Cursor", "~/.cursor/mcp.json", _cursor),
        McpClient("inspector", "MCP Inspector", None, _inspector),
    )
}
