"""`docs/monitoring`: what the Grafana dashboard and the alert rules ask for is what the metrics have."""

from __future__ import annotations

import json
import re

import pytest

from lanes import RunState
from runtime import MessageState, metrics
from tests import ROOT

PLACE = ROOT / "docs" / "monitoring"
HAVE = {
    metric.name: set(metric.labels) | {"instance"}
    for name, found in vars(metrics).items()
    if name.startswith("_OF_")
    for metric in found
}
VALUES: dict[str, dict[str, set[str]]] = {
    "lanes_runs_total": {"state": {state.value for state in RunState}},
    "lanes_inbox_messages": {"state": {state.value for state in MessageState}},
}
NAME = re.compile(r"\blanes_[a-z_]+\b")
RULE = re.compile(
    r"      - alert: (?P<alert>Lanes[A-Z]\w+)\n"
    r"        expr: (?P<expr>>-\n(?:          .+\n)+|.+\n)"
    r"(?:        for: \d+[mh]\n)?"
    r"        labels: \{severity: (?:info|warning|critical)\}\n"
    r"        annotations:\n"
    r'          summary: "(?P<summary>[^"\n]+)"\n'
    r'          description: "(?P<description>[^"\n]+)"\n'
)


def faults(expression, shown=""):
    """What an expression asks for that there is not."""
    found = []
    names = NAME.findall(expression)
    found += [f"{name}: no such metric" for name in names if name not in HAVE]
    labels = set.union(*(HAVE.get(name, set()) for name in names)) if names else set()
    for name, inside in re.findall(r"(\blanes_[a-z_]+)\{([^}]*)\}", expression):
        for label, value in re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', inside):
            if label not in HAVE.get(name, set()):
                found.append(f"{name}: no label {label}")
            for one in value.split("|") if label in VALUES.get(name, {}) else ():
                if one not in VALUES[name][label]:
                    found.append(f"{name}: {label} is never {one}")
    used = {one.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for one in group.split(",")}
    used |= set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", shown)) | set(re.findall(r"\$labels\.(\w+)", shown))
    return found + [f"{expression}: no label {label}" for label in sorted(used - labels)]


@pytest.fixture(scope="module")
def board():
    return json.loads((PLACE / "grafana.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def rules():
    text = (PLACE / "alerts.yml").read_text("utf-8")
    found = [rule.groupdict() for rule in RULE.finditer(text)]
    assert len(found) == text.count("alert:") == len({rule["alert"] for rule in found})
    head = re.sub(r"^#.*\n", "", RULE.sub("", text), flags=re.MULTILINE)
    assert head.split() == ["groups:", "-", "name:", "lanes", "rules:"]
    return found


def test_each_panel_shows_metrics_that_exist(board):
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(panels) > 20 and len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    queries = [(one["expr"], one["legendFormat"]) for panel in panels for one in panel["targets"]]
    queries += [(one["expr"], one["titleFormat"]) for one in board["annotations"]["list"]]
    assert [fault for expression, shown in queries for fault in faults(expression, shown)] == []
    assert all('instance=~"$instance"' in expression for expression, _ in queries)
    assert [one["datasource"]["uid"] for panel in panels for one in panel["targets"]] == ["${datasource}"] * (
        len(queries) - 1
    )


def test_no_panels_overlap(board):
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def test_each_alert_is_about_metrics_that_exist_and_says_what_to_do(rules):
    assert len(rules) > 10
    found = [fault for rule in rules for fault in faults(rule["expr"], rule["summary"] + rule["description"])]
    assert found == []


def test_what_is_not_there_is_found():
    assert faults('sum(rate(lanes_runs_total{state="done"}[5m])) > 1', "{{ $labels.group }}") == []
    assert faults("lanes_run_total") == ["lanes_run_total: no such metric"]
    assert faults('lanes_runs_total{lane="a"}') == ["lanes_runs_total: no label lane"]
    assert faults('lanes_runs_total{state=~"done|dead"}') == ["lanes_runs_total: state is never dead"]
    assert faults("max by (lane) (lanes_healthy)") == ["max by (lane) (lanes_healthy): no label lane"]
    assert faults("lanes_healthy", "{{ $labels.lane }}") == ["lanes_healthy: no label lane"]
