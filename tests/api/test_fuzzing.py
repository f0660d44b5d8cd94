"""Runs schemathesis, which generates requests from the OpenAPI document, on the real service."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import ROOT
from tests.support.fuzzing import AGENT
from tests.support.service import Service

SECONDS = int(os.environ.get("FUZZ_SECONDS", "30"))

# All that it can check. Instead of this check, `accepts_what_the_schema_allows` of
# tests/support/fuzzing.py knows what no schema can say.
NOT_CHECKED = "positive_data_acceptance"
if SECONDS < 30:
    # A short run by day tries other values each time, so a new refusal would be found by chance.
    NOT_CHECKED += ",accepts_what_the_schema_allows"


@pytest.mark.timeout(SECONDS + 120)
def test_generated_requests_find_no_error_and_nothing_undocumented(
    service: Service, tmp_path: Path
) -> None:
    alice = service.add_user()
    alice.request("PUT", f"/agent/{AGENT}").raise_for_status()
    own_key = alice.request("GET", "/user").json()["key"]["id"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"]
    options = [
        "--header", f"apikey: {alice.session.headers['apikey']!s}",
        "--exclude-checks", NOT_CHECKED,
        "--exclude-tag", "docs",
        # A stream ends with its task; tests/test_watching.py covers it.
        "--exclude-operation-id", "followTask",
        "--max-time", str(SECONDS),
        "--continue-on-failure", "--no-color",
    ]  # fmt: skip
    fuzzed = subprocess.run(
        [*command, *options],
        cwd=tmp_path,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.support.fuzzing",
            "PYTHONPATH": str(ROOT),
            "OWN_KEY_ID": own_key,
        },
        capture_output=True, text=True, timeout=SECONDS + 90, check=False,
    )  # fmt: skip
    print(fuzzed.stdout)
    assert fuzzed.returncode == 0, fuzzed.stdout + fuzzed.stderr
    assert alice.request("GET", "/user").status_code == 200
    assert "Traceback" not in service.log.read_text()
