# [Task]: T057 [From]: specs/requirements.md
"""The OpenAPI document: what clients are generated from, and nothing in it unseen."""

import json
import re
import time
from typing import Any

from databases import on_one_database
from service import ROOT
from support import Caller, sign

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
IGNORED_BODY = {"400", "408"}
BODY = {"400", "408", "413", "415"}
STATUSES = {
    "list_tasks": {"200", "304"} | IGNORED_BODY | ALWAYS,
    "create_task": {"201", "409"} | BODY | ALWAYS,
    "get_task": {"200", "304", "404"} | IGNORED_BODY | ALWAYS,
    "update_task": {"200", "404", "412"} | BODY | ALWAYS,
    "delete_task": {"204", "404", "412"} | IGNORED_BODY | ALWAYS,
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


def test_has_request_bodies_by_name_and_with_an_example() -> None:
    used = json.dumps(DOCUMENT["paths"])
    for name in ("TaskCreate", "TaskUpdate", "TaskCompletion"):
        schema = DOCUMENT["components"]["schemas"][name]
        assert schema["example"].keys() <= schema["properties"].keys()
        assert f'"#/components/schemas/{name}"' in used
        assert all("default" not in member for member in schema["properties"].values())
        assert "maxLength" not in schema["properties"].get("title", {})


def test_gives_parameters_a_description_an_example_and_what_generators_take() -> None:
    ids = [DOCUMENT["components"]["schemas"]["TaskPublic"]["properties"]["id"]]
    for operation in OPERATIONS.values():
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description"), parameter
            assert parameter["in"] != "path" or parameter["schema"]["examples"], parameter
            ids += [parameter["schema"]] * (parameter["name"] == "task_id")
    assert [(schema["type"], schema["format"]) for schema in ids] == [("integer", "int64")] * 5
    text = json.dumps(DOCUMENT)
    assert not re.search(r": -?\d+(\.|e)", text)
    assert ".py" not in text


def test_says_what_the_api_is() -> None:
    assert DOCUMENT["info"]["license"]["identifier"] == "MIT"
    assert DOCUMENT["servers"]
    described = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}
    assert {tag for operation in OPERATIONS.values() for tag in operation["tags"]} == described


def test_gives_each_answer_a_schema_its_request_id_and_each_error_an_example() -> None:
    for name, operation in OPERATIONS.items():
        for status, response in operation["responses"].items():
            assert "X-Request-ID" in response["headers"], (name, status)
            if status not in ("204", "304"):
                assert response["content"]["application/json"]["schema"], (name, status)
            assert status < "400" or examples(name, status), (name, status)


def examples(name: str, status: str) -> list[Any]:
    content = OPERATIONS[name]["responses"][status]["content"]["application/json"]
    several = [example["value"] for example in content.get("examples", {}).values()]
    return several or [content["example"]]


@on_one_database
async def test_shows_errors_as_they_are_sent(alice: Caller) -> None:
    task = f"/{(await alice.add())['id']}"
    expired = {"Authorization": f"Bearer {sign('alice', exp=int(time.time()) - 60)}"}
    answers = [
        ("list_tasks", await alice.get(params={"sort": "id"})),
        ("list_tasks", await alice.get(params={"cursor": "x"})),
        ("list_tasks", await alice.get(headers={"Authorization": ""})),
        ("list_tasks", await alice.get(headers={"Authorization": "Bearer x"})),
        ("list_tasks", await alice.get(headers=expired)),
        ("create_task", await alice.post({"title": " "})),
        ("create_task", await alice.post({"title": "x" * 70_000})),
        ("create_task", await alice.request("POST", content=b"{}")),
        ("get_task", await alice.get("/x")),
        ("get_task", await alice.get("/1234567")),
        ("get_task", await alice.get("/1", headers={"Authorization": f"Bearer {sign('bob')}"})),
        ("update_task", await alice.put(task, {}, headers={"If-Match": '"x"'})),
    ]
    for name, response in answers:
        assert response.json() in examples(name, f"{response.status_code}"), response.text


async def test_documents_the_headers_that_are_sent(alice: Caller) -> None:
    key = {"Idempotency-Key": "key"}
    body = {"title": "Buy milk"}
    await alice.post(body, headers=key)
    replayed = await alice.post(body, headers=key)
    task = replayed.json()["id"]
    await alice.add()
    tag = {"If-Match": replayed.headers["etag"]}
    one = f"/{task}"
    for name, response, may_be_none in (
        ("create_task", replayed, True),
        ("list_tasks", await alice.get(params={"limit": 1}), True),
        ("get_task", await alice.get(one), True),
        ("update_task", await alice.put(one, {"title": "Buy oats"}), True),
        ("complete_task", await alice.complete(task), True),
        ("get_task", await alice.get(one, headers={"If-None-Match": "*"}), False),
        ("update_task", await alice.put(one, {"title": "x"}, headers=tag), False),
        ("delete_task", await alice.delete(one, headers={"Authorization": "Bearer x"}), False),
    ):
        sent = {header.lower() for header in HEADERS} & response.headers.keys()
        documented = OPERATIONS[name]["responses"][f"{response.status_code}"].get("headers", {})
        assert sent == {header.lower() for header in documented}, name
        assert sent or may_be_none, name
