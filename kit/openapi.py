# [Task]: T057 [From]: specs/requirements.md
"""What the OpenAPI document says beyond what FastAPI finds out: names, headers, bodies by name."""

from typing import Any

from fastapi.routing import APIRoute

HEADERS = {
    "ETag": ("The version, for If-None-Match and If-Match", '"7-2026-01-31T09:00:00.000000Z"'),
    "Idempotency-Replayed": ("`true` if an earlier request with the key made the task", "true"),
    "Link": (
        "With `limit`, where there is more: the next page",
        '</api/alice/tasks?limit=50&cursor=dGhlcmU>; rel="next"',
    ),
    "Location": ("The path of the task", "/api/alice/tasks/7"),
    "Retry-After": ("Seconds after which the same request may succeed", "1"),
    "WWW-Authenticate": ("What is wrong with the token (RFC 6750)", 'Bearer error="invalid_token"'),
    "X-Next-Cursor": ("With `limit`, where there is more: the next page's `cursor`", "dGhlcmU"),
}

type Responses = dict[int | str, dict[str, Any]]


def operation_id(route: APIRoute) -> str:
    """The endpoint's own name, which clients are generated with: it stays when a path changes."""
    return route.name


def headers(*names: str) -> dict[str, Any]:
    """The `headers` of a response."""
    return {
        name: {"description": description, "schema": {"type": "string"}, "example": example}
        for name, (description, example) in HEADERS.items()
        if name in names
    }


def with_headers(status: int, *names: str) -> Responses:
    """The `responses` of an endpoint whose success comes with these headers."""
    return {status: {"headers": headers(*names)}}


def name_bodies(document: dict[str, Any]) -> None:
    """Have each request body among the document's schemas, where a client finds it by its name."""
    for path in document["paths"].values():
        for operation in path.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                schema = content["schema"]
                document["components"]["schemas"][schema["title"]] = schema
                content["schema"] = {"$ref": f"#/components/schemas/{schema['title']}"}
