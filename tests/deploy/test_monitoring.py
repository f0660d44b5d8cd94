"""deploy/alerts.yaml and deploy/grafana.json: what they ask for is in /metrics, and fires."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.documents import DOCUMENTS, ROOT, table
from tests.support.requirements import needs
from tests.support.service import Service

DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "alerts.yaml"
CASES = Path(__file__).parent / "alerts_test.yaml"
PANELS: list[dict[str, Any]] = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]] + [
    rule["expr"] for rule in RULES
]
# Prometheus makes this one itself.
OTHERS = {"up"}

Sample = tuple[str, dict[str, str]]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """What a service exports that has answered a few requests: names and labels."""
    data = tmp_path_factory.mktemp("monitoring") / "data"
    with Service(data) as service:
        alice = service.add_user()
        # A webhook that nobody receives is due again.
        task = alice.start(claim=True, callback="http://127.0.0.1:1/")
        alice.request("PATCH", f"/task/{task['id']}", json={"status": "complete"})
        (data / "last_backup").touch()
        text = requests.get(f"{service.url}/metrics", timeout=60).text
    families = text_string_to_metric_families(text)
    return [(sample.name, sample.labels) for family in families for sample in family.samples]


def selectors(expression: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Each metric that an expression selects, with its matchers: label -> operator and value."""
    for name, text in re.findall(r"\b(taskservice_\w+|up)\b(?:\{([^}]*)\})?", expression):
        matchers = re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', text)
        yield name, {label: (operator, value) for label, operator, value in matchers}


def matches(labels: dict[str, str], matchers: dict[str, tuple[str, str]]) -> bool:
    for label, (operator, value) in matchers.items():
        if label not in labels or (operator == "=" and labels[label] != value):
            return False
    return True


def test_every_metric_and_label_is_exported(
    samples: list[Sample], subtests: pytest.Subtests
) -> None:
    used = set()
    for expression in EXPRESSIONS:
        with subtests.test(expression):
            for name, matchers in selectors(expression):
                used.add(name)
                if name not in OTHERS:
                    there = [labels for other, labels in samples if other == name]
                    assert any(matches(labels, matchers) for labels in there), (name, matchers)
            grouped = re.findall(r"\bby \(([^)]*)\)", expression)
            for label in {word.strip() for words in grouped for word in words.split(",")}:
                assert any(label in labels for _, labels in samples), label
    documented = {
        row[0].strip("`") for row in table("docs/operate/monitoring.md", "## Prometheus metrics")
    }
    assert {re.sub("_bucket$", "", name) for name in used} - OTHERS == documented


def promtool(*arguments: object, folder: Path) -> str:
    program = shutil.which("promtool")
    if program is None:
        needs("promtool", "install the package prometheus")
    result = subprocess.run(
        [program, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result
    return result.stdout


def test_prometheus_reads_the_rules(tmp_path: Path) -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", ALERTS, folder=tmp_path)


def test_prometheus_reads_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(EXPRESSIONS)
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert "SUCCESS" in promtool("check", "rules", path, folder=tmp_path)


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(CASES, tmp_path)
    assert "SUCCESS" in promtool("test", "rules", CASES.name, folder=tmp_path)
    cases = yaml.safe_load(CASES.read_text())["tests"]
    for case in cases[:2]:
        tried = {test["alertname"] for test in case["alert_rule_test"]}
        assert tried == {rule["alert"] for rule in RULES}


def test_alert_names_only_commands_that_are_there(subtests: pytest.Subtests) -> None:
    listed = DOCUMENTS["docs/reference/cli-server.md"]
    for rule in RULES:
        with subtests.test(rule["alert"]):
            action = rule["annotations"]["action"]
            for group, name in re.findall(r"(?:Run|run) taskservice (\w+) (\w+)", action):
                assert f"### taskservice {group} {name}\n" in listed


def test_dashboard_has_no_panel_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
