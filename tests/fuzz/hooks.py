# [Task]: T058 [From]: specs/requirements.md
"""What schemathesis can't know of the service: whose token it has, and what a key is for."""

import uuid
from typing import Any

import schemathesis


@schemathesis.hook
def before_load_schema(_context: Any, raw_schema: dict[str, Any]) -> None:
    """All other users are 403. And it adds the bounds that the document has in words only."""
    for path in raw_schema["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "user_id":
                    parameter["schema"] = {"type": "string", "enum": ["alice"]}
                if parameter["name"] == "task_id":
                    parameter["schema"]["maximum"] = 2**63 - 1
    for body in ("TaskCreate", "TaskUpdate"):
        title = raw_schema["components"]["schemas"][body]["properties"]["title"]
        title |= {"maxLength": 200, "pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$"}


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: dict[str, Any]) -> None:
    """A key belongs to one body, and schemathesis likes to use the same one again."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if is_valid and "Idempotency-Key" in (case.headers or {}):
        case.headers["Idempotency-Key"] = uuid.uuid4().hex
