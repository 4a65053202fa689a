# [Task]: T057 [From]: specs/requirements.md
"""The OpenAPI document: what clients are generated from, and nothing in it unseen."""

import json
from typing import Any

import httpx
import pytest
from service import ROOT
from support import Caller

from kit.openapi import HEADERS
from main import app

DOCUMENT: dict[str, Any] = app.openapi()
TASKS = "/api/{user_id}/tasks"
OPERATIONS = {
    operation["operationId"]: operation
    for path in DOCUMENT["paths"].values()
    for operation in path.values()
}
# Before the endpoint is asked, and what its input may meet.
ALWAYS = {"401", "403", "422", "500", "503"}
BODY = {"408", "413", "415"}
STATUSES = {
    "list_tasks": {"200", "304", "400"} | ALWAYS,
    "create_task": {"201", "409"} | BODY | ALWAYS,
    "get_task": {"200", "304", "404"} | ALWAYS,
    "update_task": {"200", "404", "412"} | BODY | ALWAYS,
    "delete_task": {"204", "404", "412"} | ALWAYS,
    "complete_task": {"200", "404", "412"} | BODY | ALWAYS,
    "health": {"200"},
    "ready": {"200", "503"},
}


def test_changes_only_on_purpose() -> None:
    """`make client` writes the file, and with it the types of the client."""
    assert json.loads((ROOT / "specs/openapi.json").read_text()) == DOCUMENT


def test_names_every_operation_and_each_of_its_statuses() -> None:
    found = {name: set(operation["responses"]) for name, operation in OPERATIONS.items()}
    assert found == STATUSES


@pytest.mark.parametrize("name", ["TaskCreate", "TaskUpdate", "TaskCompletion"])
def test_has_request_bodies_by_name_and_with_an_example(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    assert schema["example"].keys() <= schema["properties"].keys()
    used = json.dumps(DOCUMENT["paths"])
    assert f'"#/components/schemas/{name}"' in used


def test_gives_each_parameter_a_description() -> None:
    for operation in OPERATIONS.values():
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description"), parameter


def documented(name: str, response: httpx.Response) -> set[str]:
    headers = OPERATIONS[name]["responses"][f"{response.status_code}"].get("headers", {})
    return {header.lower() for header in headers}


def sent(response: httpx.Response) -> set[str]:
    return {name.lower() for name in HEADERS} & response.headers.keys()


async def test_documents_the_headers_that_are_sent(alice: Caller) -> None:
    key = {"Idempotency-Key": "key"}
    body = {"title": "Buy milk"}
    await alice.post(body, headers=key)
    replayed = await alice.post(body, headers=key)
    task = replayed.json()["id"]
    await alice.add()
    tag = replayed.headers["etag"]
    for name, response in {
        "create_task": replayed,
        "list_tasks": await alice.get(params={"limit": 1}),
        "get_task": await alice.get(f"/{task}"),
        "update_task": await alice.put(f"/{task}", {"title": "Buy oats"}),
        "complete_task": await alice.complete(task),
    }.items():
        assert sent(response) == documented(name, response), name
    for name, response in {
        "get_task": await alice.request("GET", f"/{task}", headers={"If-None-Match": "*"}),
        "update_task": await alice.request(
            "PUT", f"/{task}", headers={"If-Match": tag}, json={"title": "x"}
        ),
        "delete_task": await alice.request(
            "DELETE", f"/{task}", headers={"Authorization": "Bearer x"}
        ),
    }.items():
        assert sent(response) == documented(name, response) != set(), name
