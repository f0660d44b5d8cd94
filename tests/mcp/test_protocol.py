"""The protocol of `/mcp`: its eras, its messages, and each error."""

from base64 import b64encode
from typing import Any

import pytest

from taskservice import __version__
from tests.support.api_client import ApiClient
from tests.support.marks import one_database
from tests.support.mcp import (
    CAPABILITIES_KEY,
    FORMS,
    MODERN,
    TASKS,
    VERSION_KEY,
    Json,
    McpClient,
)

pytestmark = one_database

LEGACY = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"]
REQUEST = {"jsonrpc": "2.0", "id": 7, "method": "ping"}


@pytest.fixture
def mcp(alice: ApiClient) -> McpClient:
    return McpClient(alice, TASKS, FORMS)


# --- eras --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [*LEGACY, MODERN, "1999-01-01", None, 5])
def test_initialize_answers_the_legacy_version_that_was_asked_for_or_the_newest(
    mcp: McpClient, version: Any
) -> None:
    answer = mcp.legacy("initialize", {"protocolVersion": version, "capabilities": {}})
    result = answer.result
    assert result["protocolVersion"] == (version if version in LEGACY else LEGACY[0])
    assert mcp.legacy("initialize").result["protocolVersion"] == LEGACY[0]
    assert result["capabilities"] == {"tools": {}}
    assert result["serverInfo"]["name"] == "taskservice"
    assert result["serverInfo"]["version"] == __version__
    assert "list_tasks" in result["instructions"]
    assert "resultType" not in result
    assert "Mcp-Session-Id" not in answer.headers


def test_discover_tells_what_the_service_can_do(mcp: McpClient) -> None:
    answer = mcp.modern("server/discover")
    result = answer.result
    assert result["supportedVersions"] == [MODERN, *LEGACY]
    assert result["capabilities"] == {"tools": {}, **TASKS}
    assert result["resultType"] == "complete"
    assert (result["ttlMs"], result["cacheScope"]) == (60_000, "private")
    server = result["_meta"]["io.modelcontextprotocol/serverInfo"]
    assert (server["name"], server["version"]) == ("taskservice", __version__)
    assert answer.headers["Content-Type"] == "application/json"
    assert {"apikey", "Authorization"} <= set(answer.headers["Vary"].split(", "))
    assert answer.headers["Cache-Control"] == "no-store"


def test_list_of_tools_may_be_kept_in_the_modern_era_only(mcp: McpClient) -> None:
    modern = mcp.modern("tools/list").result
    assert (modern["ttlMs"], modern["cacheScope"]) == (60_000, "private")
    assert modern["resultType"] == "complete"
    assert mcp.legacy("tools/list").result == {"tools": modern["tools"]}


@pytest.mark.parametrize("version", [*LEGACY, None])
def test_ping_is_answered_with_and_without_a_legacy_version_in_the_header(
    mcp: McpClient, version: str | None
) -> None:
    answer = mcp.legacy("ping", MCP_Protocol_Version=version, Mcp_Session_Id="of a proxy")
    assert answer.result == {}


@pytest.mark.parametrize("message_id", [0, -1, 1.5, "", "a", 12345678901234567890123])
def test_answer_has_the_id_of_its_request(mcp: McpClient, message_id: Any) -> None:
    body = REQUEST | {"id": message_id}
    assert mcp.post(body).json == {"jsonrpc": "2.0", "id": message_id, "result": {}}
    unknown = mcp.post(body | {"method": "nothing"}).json
    assert unknown["id"] == message_id


NOTIFICATIONS = ["notifications/initialized", "notifications/cancelled", "anything/at/all"]


@pytest.mark.parametrize("method", NOTIFICATIONS)
def test_notification_is_accepted_and_has_no_effect(mcp: McpClient, method: str) -> None:
    params = {"requestId": 1, "reason": "the user left"}
    answer = mcp.post({"jsonrpc": "2.0", "method": method, "params": params})
    assert (answer.status, answer.json) == (202, None)


def test_accept_is_not_enforced(mcp: McpClient) -> None:
    for accepted in ("text/event-stream", "application/json", "image/png", ""):
        assert mcp.post(REQUEST, Accept=accepted).result == {}


def test_log_names_the_method_and_the_tool(
    mcp: McpClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "taskservice.request")
    mcp.call("list_tasks")
    mcp.modern("tools/list")
    mcp.modern("tools/call", {"name": "x" * 9_000})
    logged: Any = [record for record in caplog.records if record.name == "taskservice.request"]
    assert [record.getMessage() for record in logged] == ["POST /mcp"] * 3
    named = [(record.details["method"], record.details.get("tool")) for record in logged]
    assert named == [
        ("tools/call", "list_tasks"),
        ("tools/list", None),
        ("tools/call", "x" * 64),
    ]


# --- errors of the message ---------------------------------------------------------------

UNREADABLE = {
    "nothing": b"",
    "half an object": b'{"jsonrpc": "2.0"',
    "NaN": b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"a": NaN}}',
    "the same key twice": b'{"jsonrpc": "2.0", "id": 1, "id": 2, "method": "ping"}',
    "not UTF-8": b'{"jsonrpc": "2.0", "id": 1, "method": "\xff"}',
    "half a surrogate": rb'{"jsonrpc": "2.0", "id": 1, "method": "\ud800"}',
    "nested deeply": b"[" * 100_000,
    "a number past a double": b'{"jsonrpc": "2.0", "id": 1e999, "method": "ping"}',
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_body_that_is_not_strict_json_is_a_parse_error(mcp: McpClient, body: bytes) -> None:
    answer = mcp.post(body)
    assert answer.refused == (400, -32700)
    assert answer.json["id"] is None


INVALID: dict[str, Any] = {
    "an array": [REQUEST],
    "an empty array": [],
    "a string": "ping",
    "null": None,
    "without a version": {"id": 1, "method": "ping"},
    "another version": REQUEST | {"jsonrpc": "1.0"},
    "without a method": {"jsonrpc": "2.0", "id": 1},
    "an answer": {"jsonrpc": "2.0", "id": 1, "result": {}},
    "a method that is no text": REQUEST | {"method": 5},
    "params that are an array": REQUEST | {"params": []},
    "params that are null": REQUEST | {"params": None},
    "id null": REQUEST | {"id": None},
    "id true": REQUEST | {"id": True},
    "id an object": REQUEST | {"id": {}},
    "a notification with an array": {"jsonrpc": "2.0", "method": "x", "params": []},
}


@pytest.mark.parametrize("body", INVALID.values(), ids=INVALID.keys())
def test_body_that_is_not_one_request_is_invalid(mcp: McpClient, body: Any) -> None:
    answer = mcp.post(body)
    assert answer.refused == (400, -32600)
    assert answer.json["id"] is None


# --- errors of the era, in the order in which they are checked -----------------------------


def test_only_arguments_and_answers_may_be_large(mcp: McpClient) -> None:
    ping, large = {"jsonrpc": "2.0", "id": 1, "method": "ping"}, {"x": "y" * 70_000}
    for params in ({"arguments": large}, {"inputResponses": large}):
        assert mcp.post(ping | {"params": params}).result == {}
    for body in ({"params": large}, {"params": {"_meta": large}}, {"id": "y" * 70_000}, large):
        assert mcp.post(ping | body).refused == (400, -32600)


def test_unsupported_version_gets_the_supported_ones(mcp: McpClient) -> None:
    in_both = [
        (version, mcp.modern("server/discover", {"_meta": {VERSION_KEY: version}},
                             MCP_Protocol_Version=version))
        for version in ("v999.0.0", *LEGACY)
    ]  # fmt: skip
    in_header = [
        (version, mcp.legacy("ping", MCP_Protocol_Version=version))
        for version in ("2031-01-01", "")
    ]
    for version, answer in in_both + in_header:
        assert answer.refused == (400, -32022), version
        data = answer.json["error"]["data"]
        assert data == {"supported": [MODERN, *LEGACY], "requested": version}


def test_version_in_the_header_must_match_the_body(mcp: McpClient) -> None:
    for header in ("2025-11-25", "v999.0.0", None, f"{MODERN}, {MODERN}"):
        answer = mcp.modern("tools/list", MCP_Protocol_Version=header)
        assert answer.refused == (400, -32020)
        assert isinstance(answer.json["id"], int)
    # One that is not a text differs from every header.
    for version in (None, 5, [MODERN]):
        answer = mcp.modern("tools/list", {"_meta": {VERSION_KEY: version}})
        assert answer.refused == (400, -32020)


META_MISSING: dict[str, Json] = {
    "no params": {},
    "no _meta": {"params": {}},
    "_meta that is no object": {"params": {"_meta": []}},
    "no version": {"params": {"_meta": {CAPABILITIES_KEY: {}}}},
    "no capabilities": {"params": {"_meta": {VERSION_KEY: MODERN}}},
    "capabilities that are no object": {
        "params": {"_meta": {VERSION_KEY: MODERN, CAPABILITIES_KEY: []}}
    },
}


@pytest.mark.parametrize("params", META_MISSING.values(), ids=META_MISSING.keys())
def test_modern_request_needs_its_version_and_capabilities(mcp: McpClient, params: Json) -> None:
    body = {"jsonrpc": "2.0", "id": 3, "method": "server/discover"} | params
    answer = mcp.post(body, MCP_Protocol_Version=MODERN, Mcp_Method="server/discover")
    assert answer.refused == (400, -32602)
    assert answer.json["id"] == 3


@pytest.mark.parametrize("header", [None, "tools/call", "TOOLS/LIST", "", "tools/list,tools/list"])
def test_method_in_the_header_must_match_the_body(mcp: McpClient, header: str | None) -> None:
    assert mcp.modern("tools/list", Mcp_Method=header).refused == (400, -32020)


def in_base64(text: str) -> str:
    return f"=?base64?{b64encode(text.encode()).decode()}?="


WRONG_NAMES = [
    None, "", "other", "LIST_TASKS", in_base64("other"), "=?base64?%%%?=", "=?base64?/w==?=",
    "=?base64?é?=",
]  # fmt: skip


def test_name_in_the_header_must_match_the_tool(mcp: McpClient) -> None:
    call = {"name": "list_tasks", "arguments": {}}
    for header in WRONG_NAMES:
        assert mcp.modern("tools/call", call, Mcp_Name=header).refused == (400, -32020), header
    # It may have spaces around it, or be in base64.
    for header in ("  list_tasks  ", in_base64("list_tasks"), "\tlist_tasks"):
        assert mcp.modern("tools/call", call, Mcp_Name=header).status == 200, header


def test_name_of_another_script_fits_in_base64_alone(mcp: McpClient) -> None:
    call = {"name": "名前"}
    assert mcp.modern("tools/call", call, Mcp_Name=in_base64("名前")).refused == (200, -32602)
    assert mcp.modern("tools/call", call, Mcp_Name="name").refused == (400, -32020)


def test_name_may_be_absent_but_not_another_for_a_task(mcp: McpClient, alice: ApiClient) -> None:
    task = {"taskId": alice.start()["id"]}
    for method in ("tasks/get", "tasks/update", "tasks/cancel"):
        params = task | {"inputResponses": {}}
        assert mcp.modern(method, params, Mcp_Name=None).status == 200
        assert mcp.modern(method, params, Mcp_Name="other").refused == (400, -32020)


def test_unknown_method_is_404_in_the_modern_era_and_200_in_the_legacy_era(mcp: McpClient) -> None:
    removed = ("initialize", "ping", "tasks/list", "tasks/result")
    for method in (*removed, "prompts/list", "a/b", "", "x" * 9_000):
        answer = mcp.modern(method, {"taskId": "any", "name": "any"}, Mcp_Name=None)
        assert answer.refused == (404, -32601), method
    for method in ("server/discover", "tasks/get", "tasks/cancel", "prompts/list"):
        assert mcp.legacy(method, {"taskId": "any"}).refused == (200, -32601), method


def test_version_is_checked_before_meta_and_method(mcp: McpClient) -> None:
    """Each request has all faults that come after its own."""
    unsupported = {"_meta": {VERSION_KEY: "v9", CAPABILITIES_KEY: []}}
    wrong: dict[str, Any] = {"Mcp_Method": "wrong", "Mcp_Name": "wrong"}
    assert mcp.modern("nothing", unsupported, MCP_Protocol_Version="v9", **wrong).code == -32022
    no_capabilities: Json = {"_meta": {CAPABILITIES_KEY: []}}
    assert mcp.modern("nothing", no_capabilities, **wrong).code == -32602
    assert mcp.modern("nothing", **wrong).code == -32020
    assert mcp.modern("nothing", Mcp_Name="wrong").code == -32601


# --- errors of a call --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
def test_tasks_need_their_extension_declared(alice: ApiClient, method: str) -> None:
    task = alice.start()
    answer = McpClient(alice, FORMS).modern(method, {"taskId": task["id"], "inputResponses": {}})
    assert answer.refused == (400, -32021)
    assert answer.json["error"]["data"] == {"requiredCapabilities": TASKS}
    assert alice.task(task)["status"] == "running"


@pytest.mark.parametrize("declared", [{"extensions": []}, {"extensions": None}, {"tasks": {}}])
def test_odd_capabilities_declare_nothing(alice: ApiClient, declared: Json) -> None:
    mcp = McpClient(alice, declared, {"elicitation": 5})
    task = alice.start()
    assert mcp.modern("tasks/get", {"taskId": task["id"]}).code == -32021
    assert mcp.call("wait_task", {"taskId": task["id"], "seconds": 0})["resultType"] == "complete"


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
def test_task_that_is_unknown_deleted_or_of_another_user_is_invalid(
    mcp: McpClient, alice: ApiClient, bob: ApiClient, method: str
) -> None:
    deleted, others = alice.start(), bob.start()
    alice.delete(f"/task/{deleted['id']}")
    unknown = "0193b0a0-0000-7000-8000-000000000000"
    wrong: list[Any] = [unknown, "no uuid", "", None, 5, {}, deleted["id"], others["id"]]
    for task_id in wrong:
        params = {"taskId": task_id, "inputResponses": {}}
        assert mcp.modern(method, params, Mcp_Name=None).refused == (200, -32602)
    assert bob.task(others)["status"] == "running"


@pytest.mark.parametrize("name", ["nothing", "summarizer ", "", None, 5, ["list_tasks"]])
def test_unknown_tool_is_invalid(mcp: McpClient, alice: ApiClient, name: Any) -> None:
    alice.register(tool=True)
    call = {"name": name, "arguments": {}}
    assert mcp.modern("tools/call", call, Mcp_Name=in_base64(str(name or ""))).code in (
        -32602,
        -32020,
    )
    assert mcp.legacy("tools/call", call).refused == (200, -32602)


def test_arguments_that_are_not_an_object_are_invalid(mcp: McpClient) -> None:
    wrong: list[Any] = [[], "text", 5, True]
    for arguments in wrong:
        call = {"name": "list_tasks", "arguments": arguments}
        assert mcp.modern("tools/call", call).refused == (200, -32602)


def test_what_a_model_can_correct_is_a_result(mcp: McpClient, alice: ApiClient) -> None:
    task = alice.start()
    wrong: list[tuple[str, Json, str]] = [
        ("wait_task", {}, "taskId"),
        ("wait_task", {"taskId": task["id"], "seconds": 46}, "seconds"),
        ("wait_task", {"taskId": task["id"], "secnods": 1}, "secnods"),
        ("wait_task", {"taskId": "nothing"}, "not found"),
        ("read_log", {"taskId": task["id"], "limit": 0}, "limit"),
        ("list_tasks", {"status": "done"}, "status"),
        ("list_tasks", {"limit": 51}, "limit"),
        ("start_task", {"agentId": "nobody"}, "No such agent"),
        ("start_task", {"agentId": "summarizer", "input": []}, "input"),
        ("answer_task", {"taskId": task["id"], "questionId": task["id"]}, "No such question"),
    ]
    for name, arguments, reason in wrong:
        result = mcp.call(name, arguments)
        assert result["isError"] is True, name
        assert reason in result["content"][0]["text"], name
        assert result["resultType"] == "complete"
