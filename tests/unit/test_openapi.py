"""The OpenAPI document is fresh and names exactly what the application routes."""

from __future__ import annotations

import json
from pathlib import Path

from haagent.api.app import build_app
from haagent.api.health import OWN_HANDLERS, check_of_path
from haagent.api.openapi import HEALTH_CHECKS, as_text, document
from tests.support.rest import Agent, settings

WRITTEN = Path(__file__).parents[2] / "configs" / "openapi.json"


def test_the_committed_document_is_up_to_date() -> None:
    how = "python -c 'from haagent.api.openapi import as_text; print(as_text(), end=str())'"
    assert WRITTEN.read_text() == as_text(), f"run: {how} > configs/openapi.json"


def test_it_names_what_the_application_routes_and_nothing_else() -> None:
    rules = build_app(Agent(), settings()).url_map.iter_rules()
    own = ((rule.rule, (rule.methods or set()) - {"HEAD"}) for rule in rules if "<" not in rule.rule)
    routed = {(path, method) for path, methods in own for method in methods}
    paths = document()["paths"]
    named = {(path, method.upper()) for path, methods in paths.items() for method in methods}
    checks = {(path, method) for path in HEALTH_CHECKS for method in ("GET", "HEAD", "OPTIONS")}
    assert checks <= named
    assert named - checks == routed - {("/", "GET")}


def test_health_checks_are_those_that_are_understood() -> None:
    assert all(check_of_path(path) is not None for path in HEALTH_CHECKS)
    own = {path.strip("/") for path, methods in document()["paths"].items() if "get" in methods}
    assert own - {path.strip("/") for path in HEALTH_CHECKS} == OWN_HANDLERS


def test_every_reference_leads_somewhere() -> None:
    text = as_text()
    schemas = json.loads(text)["components"]["schemas"]
    named = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert named == set(schemas)
