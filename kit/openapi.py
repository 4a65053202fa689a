# [Task]: T057 [From]: specs/requirements.md
"""Completes FastAPI's OpenAPI document: operation ids, headers, named request bodies.

Client generators read it. So each body and header is a named component, and members of a body have
no `default`, because some generators treat such members as required.
"""

from typing import Any

from fastapi.routing import APIRoute

# A suffix after a dot distinguishes headers of the same name.
HEADERS = {
    "ETag": (
        "The version of the task, a strong tag, for If-None-Match and If-Match",
        '"7-2026-01-31T09:00:00.000000Z"',
    ),
    "ETag.list": (
        "The version of the list, a weak tag, for If-None-Match",
        'W/"5d41402abc4b2a76b9719d911017c592"',
    ),
    "Idempotency-Replayed": ("`true` if an earlier request with the key made the task", "true"),
    "Link": (
        "With `limit`, where there is more: the next page",
        '</api/alice/tasks?limit=50&cursor=dGhlcmU>; rel="next"',
    ),
    "Location": ("The path of the task", "/api/alice/tasks/7"),
    "Retry-After": ("Seconds after which the same request may succeed", "1"),
    "WWW-Authenticate": ("What is wrong with the token (RFC 6750)", 'Bearer error="invalid_token"'),
    "X-Next-Cursor": ("With `limit`, where there is more: the next page's `cursor`", "dGhlcmU"),
    "X-Request-ID": (
        "Finds the request in the log: its own `X-Request-ID` if that is 1 to 128 of "
        "`A-Z a-z 0-9 . _ -`, else a new one",
        "8f14e45fceea467fa8d20242ac120002",
    ),
}

type Responses = dict[int | str, dict[str, Any]]


def operation_id(route: APIRoute) -> str:
    """The endpoint's name. Generated clients use it, and it does not change with the path."""
    return route.name


def headers(*names: str) -> dict[str, Any]:
    """The `headers` of a response."""
    return {
        name.partition(".")[0]: {"$ref": f"#/components/headers/{name}"}
        for name in HEADERS
        if name in names
    }


def with_headers(status: int, *names: str) -> Responses:
    """The `responses` of an endpoint whose successful response has these headers."""
    return {status: {"headers": headers(*names)}}


def complete(document: dict[str, Any]) -> None:
    """Make request bodies and headers components, and add X-Request-ID to every response."""
    components = document["components"]
    components["headers"] = {
        name: {"description": description, "schema": {"type": "string"}, "example": example}
        for name, (description, example) in HEADERS.items()
    }
    for path in document["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                response.setdefault("headers", {}).update(headers("X-Request-ID"))
            for content in operation.get("requestBody", {}).get("content", {}).values():
                schema = content["schema"]
                for member in schema["properties"].values():
                    member.pop("default", None)
                components["schemas"][schema["title"]] = schema
                content["schema"] = {"$ref": f"#/components/schemas/{schema['title']}"}
