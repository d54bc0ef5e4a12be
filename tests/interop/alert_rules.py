"""Reads the alert rules as Prometheus would: with its own promtool where that is installed, and otherwise as far as
their shape goes. Usage: alert_rules.py FILE"""

import os
import shutil
import subprocess
import sys

import yaml

SEVERITIES = {"page", "ticket"}
KNOWN = {"alert", "expr", "for", "labels", "annotations"}


def check(rule: dict) -> None:
    name = rule["alert"]
    assert set(rule) <= KNOWN, f"{name}: unknown keys {set(rule) - KNOWN}"
    assert rule["expr"].strip(), f"{name}: no expression"
    assert rule["labels"]["severity"] in SEVERITIES, f"{name}: unknown severity"
    for text in ("summary", "description"):
        assert rule["annotations"][text].strip(), f"{name}: no {text}"
    for opening, closing in ("()", "{}", "[]"):
        assert rule["expr"].count(opening) == rule["expr"].count(closing), f"{name}: unbalanced {opening}"


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        groups = yaml.safe_load(file)["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 5, "hardly any rules"
    assert len({rule["alert"] for rule in rules}) == len(rules), "two rules have one name"
    for rule in rules:
        check(rule)
    promtool = shutil.which("promtool", path=f"target/promtool/usr/bin:{os.environ.get('PATH', '')}")
    if promtool:
        subprocess.run([promtool, "check", "rules", path], check=True)
    print(f"{len(rules)} rules, read by {'promtool' if promtool else 'a YAML parser alone: promtool is not installed'}")


main(sys.argv[1])
