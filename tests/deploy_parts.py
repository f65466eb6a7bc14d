"""What tests of deploy/ share: the metrics that an expression names, and rules with their times made short."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ptystream.metrics import METRICS

DEPLOY = Path(__file__).parents[1] / "deploy"
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_start_time_seconds"}
SECONDS = {"s": 1, "m": 60, "h": 3600}


def served() -> set[str]:
    """Names of every series that a session serves."""
    names = set(PROCESS)
    for name, kind, _, _ in METRICS:
        names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    return names


def named(expression: str) -> set[str]:
    """Names of metrics in an expression of PromQL."""
    return set(re.findall(r"\b(?:ptystream|process)_\w+", re.sub(r'"[^"]*"', '""', expression)))


def faster(factor: float) -> dict[str, Any]:
    """The alert rules with every time divided by `factor`: `for`, ranges, and limits marked `# seconds`."""

    def shorter(match: re.Match[str]) -> str:
        return f"{round(1000 * float(match[1]) * SECONDS[match[2]] / factor)}ms"

    rules: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule["for"] = re.sub(r"(\d+)([smh])", shorter, rule.get("for", "0s"))
        text = re.sub(r"\[(\d+)([smh])\]", lambda m: f"[{shorter(m)}]", rule["expr"])
        rule["expr"] = re.sub(r"(\d+)(\)?\s*# seconds)", lambda m: f"{float(m[1]) / factor:g}{m[2]}", text)
    return rules
