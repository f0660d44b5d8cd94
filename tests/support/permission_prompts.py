"""The permission prompts of coding agents, as their hooks get them, and valid decisions."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs

Json = dict[str, Any]
BASH = {"command": "rm -rf build", "description": "Remove the build"}
# By the documentation of Claude Code: https://code.claude.com/docs/en/hooks.
CLAUDE = {
    "session_id": "abc123de-0000-4000-8000-00000000beef",
    "transcript_path": "/home/ann/.claude/projects/website/abc123.jsonl",
    "cwd": "/home/ann/website", "permission_mode": "default",
    "hook_event_name": "PermissionRequest", "tool_name": "Bash", "tool_input": BASH,
    "permission_suggestions": [{"type": "toolAlwaysAllow", "tool": "Bash"}],
}  # fmt: skip
# All that its schema requires.
CODEX = {
    "session_id": "01a20e63-9249-7000-8000-00000000cafe", "turn_id": "7",
    "transcript_path": None, "cwd": "/home/ann/website", "permission_mode": "default",
    "hook_event_name": "PermissionRequest", "model": "any", "tool_name": "Bash",
    "tool_input": BASH,
}  # fmt: skip
CODEX_SCHEMAS = json.loads(Path(__file__).with_name("codex_hook_schemas.json").read_text())
# What both accept, without what Codex refuses, such as `updatedInput`.
OUTPUT = {
    "type": "object", "additionalProperties": False, "required": ["hookSpecificOutput"],
    "properties": {"hookSpecificOutput": {
        "type": "object", "additionalProperties": False,
        "required": ["hookEventName", "decision"],
        "properties": {
            "hookEventName": {"const": "PermissionRequest"},
            "decision": {
                "type": "object", "additionalProperties": False, "required": ["behavior"],
                "properties": {
                    "behavior": {"enum": ["allow", "deny"]},
                    "message": {"type": "string", "minLength": 1},
                },
            },
        },
    }},
}  # fmt: skip


def decision(printed: str) -> Json:
    """The decision in the output of a hook."""
    output = json.loads(printed)
    for schema in (OUTPUT, CODEX_SCHEMAS["output"]):
        jsonschema_rs.validate(schema, output)
    return dict(output["hookSpecificOutput"]["decision"])
