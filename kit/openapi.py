# [Task]: T057 [From]: specs/requirements.md
"""What the OpenAPI document says beyond what FastAPI finds out: names, headers, bodies by name.

Client generators read it, so a request body has no `default` (some take such a member for required)
and each body and header is a component with a name.
"""

from typing import Any

from fastapi.routing import APIRoute

# A part after a dot tells headers of one name apart.
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
    """The endpoint's own name, which clients are generated with: it stays when a path changes."""
    return route.name


def headers(*names: str) -> dict[str, Any]:
    """The `headers` of a response."""
    return {
        name.partition(".")[0]: {"$ref": f"#/components/headers/{name}"}
        for name in HEADERS
        if name in names
    }


def with_headers(status: int, *names: str) -> Responses:
    """The `responses` of an endpoint whose success comes with these headers."""
    return {status: {"headers": headers(*names)}}


def complete(document: dict[str, Any]) -> None:
    """Name the request bodies and the headers, and give every response its X-Request-ID."""
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
