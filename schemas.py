# [Task]: T006 [From]: specs/requirements.md
"""What clients send and see: request bodies, the parts of a path, a task."""

import re
from datetime import datetime
from typing import Annotated
from urllib.parse import unquote

from fastapi import Path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

# pydantic wants this TypedDict rather than typing's for total=False fields with metadata.
from typing_extensions import TypedDict

from models import DESCRIPTION_LENGTH, TITLE_LENGTH

USER_ID_LENGTH = 255
MAX_TASK_ID = 2**63 - 1

# Control characters and lone surrogates, which no user id may hold.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_TASK_ID = re.compile(r"[1-9][0-9]{0,18}")

Title = Annotated[
    str,
    StringConstraints(strict=True, strip_whitespace=True, min_length=1, max_length=TITLE_LENGTH),
]
Description = Annotated[str, StringConstraints(strict=True, max_length=DESCRIPTION_LENGTH)]


class TaskCreate(BaseModel):
    """A new task. Unknown members are ignored."""

    title: Title
    description: Description | None = None
    completed: StrictBool = False


class TaskUpdate(TypedDict, total=False):
    """What to change; an absent member stays as it is, `"description": null` clears it."""

    title: Title
    description: Description | None
    completed: StrictBool


class TaskCompletion(BaseModel):
    """The state to set, whatever it was."""

    completed: StrictBool


class TaskPublic(BaseModel):
    """A task as every endpoint returns it."""

    id: Annotated[int, Field(ge=1, le=MAX_TASK_ID)]
    user_id: str
    title: str
    description: str | None
    completed: bool
    created_at: datetime
    updated_at: datetime

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": 1,
                "user_id": "alice",
                "title": "Buy milk",
                "description": None,
                "completed": False,
                "created_at": "2026-01-31T09:00:00.000000Z",
                "updated_at": "2026-01-31T09:00:00.000000Z",
            }
        }
    )


def decode_user_id(segment: str) -> str:
    """A path segment as middleware/request.py leaves it, as the user id that it stands for."""
    return unquote(segment) if "%" in segment else segment


def _user_id(user_id: str) -> str:
    if CONTROLS.search(user_id):
        raise PydanticCustomError("user_id", "Input should hold no control characters")
    return user_id


def _task_id(text: str) -> int:
    if not _TASK_ID.fullmatch(text) or int(text) > MAX_TASK_ID:
        raise PydanticCustomError("task_id", "Input should be a whole number from 1 to 2^63-1")
    return int(text)


UserId = Annotated[
    str,
    Path(description="The token's `sub`, percent-encoded", min_length=1, max_length=USER_ID_LENGTH),
    BeforeValidator(decode_user_id),
    AfterValidator(_user_id),
]
TaskId = Annotated[int, Path(ge=1, le=MAX_TASK_ID), BeforeValidator(_task_id)]
