"""A model behind the Messages API with the answers of a test."""

import json
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Lock, Thread
from typing import Any

Turn = str | tuple[str, dict[str, Any]]

USAGE = {"input_tokens": 1, "output_tokens": 1}


class StubModel:
    """Serves on loopback while `with` lasts.

    `turns` are its answers in a conversation with tools, one after the other: a text, or the
    call of a tool as a pair of its name and its input. `$result` in a text stands for the newest
    result of a tool, and `$name` as a value in an input for the value of this name in the newest
    result that has it.
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = iter(turns)
        self._numbers = count(1)
        self._lock = Lock()
        # The results of the tools, as the client sent them to the model.
        self.results: list[str] = []
        self.requests: list[dict[str, Any]] = []
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                request = json.loads(self.rfile.read(length) or b"{}")
                if "count_tokens" in self.path:
                    self._answer("application/json", json.dumps(USAGE).encode())
                else:
                    content = model._content(request)
                    self._answer("text/event-stream", b"".join(_events(content)))

            def do_HEAD(self) -> None:
                self._answer("application/json", b"")

            do_GET = do_HEAD

            def _answer(self, kind: str, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "StubModel":
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _content(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.requests.append(request)
            if not request.get("tools"):
                # Something in passing, for example a title for the conversation.
                return {"type": "text", "text": "A title"}
            self.results = list(_results(request["messages"]))
            turn = next(self._turns, "Nothing is left to say.")
            if isinstance(turn, str):
                return {"type": "text", "text": turn.replace("$result", self._newest_result())}
            name, arguments = turn
            filled = {key: self._filled(value) for key, value in arguments.items()}
            number = next(self._numbers)
            return {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": filled}

    def _newest_result(self) -> str:
        return self.results[-1] if self.results else ""

    def _filled(self, value: Any) -> Any:
        if not (isinstance(value, str) and value.startswith("$")):
            return value
        for result in reversed(self.results):
            values = _values(result, value[1:])
            if values:
                return values[0]
        raise AssertionError(f"No result has {value}: {self.results}")


def _results(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        if not isinstance(message["content"], list):
            continue
        for block in message["content"]:
            if block["type"] == "tool_result":
                content = block["content"]
                yield content if isinstance(content, str) else content[0]["text"]


def _values(text: str, name: str) -> list[str]:
    """The values of a name in a JSON text, at any depth."""
    values: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values.extend(value for key, value in pairs if key == name)
        return dict(pairs)

    try:
        json.loads(text, object_pairs_hook=look)
    except ValueError:
        return []
    return values


def _events(content: dict[str, Any]) -> Iterator[bytes]:
    """One message as the Messages API streams it."""
    is_text = content["type"] == "text"
    empty: dict[str, Any] = {"text": ""} if is_text else {"input": {}}
    delta = (
        {"type": "text_delta", "text": content["text"]}
        if is_text
        else {"type": "input_json_delta", "partial_json": json.dumps(content["input"])}
    )
    message: dict[str, Any] = {
        "id": "msg_stub", "type": "message", "role": "assistant", "model": "stub",
        "content": [], "stop_reason": None, "stop_sequence": None, "usage": USAGE,
    }  # fmt: skip
    reason = "end_turn" if is_text else "tool_use"
    for event in (
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": content | empty},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": USAGE},
        {"type": "message_stop"},
    ):
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
