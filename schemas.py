# [Task]: T006 [From]: specs/requirements.md
"""What clients send and get: request bodies, path and query parameters, a task."""

import re
from typing import Annotated, Any, Literal, Self

from fastapi import Path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

# pydantic needs this TypedDict for total=False fields with metadata; typing's does not work.
from typing_extensions import TypedDict

from kit.database.sql import Instant
from kit.json_rows import json_writer
from kit.paths import CONTROLS, USER_ID_LENGTH, OrAbsent, decode_user_id
from models import DESCRIPTION_LENGTH, TITLE_LENGTH

MAX_TASK_ID = 2**63 - 1

SEARCH_LENGTH = 200

# The largest `limit`.
PAGE_LENGTH = 200

_TASK_ID = re.compile(r"[1-9][0-9]{0,18}")

_PLAIN_DECIMAL = re.compile(r"0|-?[1-9][0-9]*")


Title = Annotated[
    str,
    StringConstraints(
        strict=True,
        strip_whitespace=True,
        min_length=1,
        max_length=TITLE_LENGTH,
        # No NUL, because PostgreSQL can't store it, and at least one character that is no space.
        pattern=r"^[^\u0000]*[^\s\u0000][^\u0000]*$",
    ),
    # The bounds apply to the stripped text. A client would check them before stripping.
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "pattern": r"^[^\u0000]*$",
            "description": f"1 to {TITLE_LENGTH} characters, without surrounding white space, "
            "which is stripped",
        }
    ),
]

Description = Annotated[
    str, StringConstraints(strict=True, max_length=DESCRIPTION_LENGTH, pattern=r"^[^\u0000]*$")
]


Search = Annotated[
    str,
    # U+FFFD replaces bytes that are not UTF-8, so a match would be a mistake.
    StringConstraints(min_length=1, max_length=SEARCH_LENGTH, pattern=r"^[^\u0000\ufffd]*$"),
]

Limit = Annotated[int, Field(ge=1, le=PAGE_LENGTH)]

Sort = Literal["created_at", "updated_at", "title"]

Order = Literal["asc", "desc"]


class TaskCreate(BaseModel):
    """A new task. Unknown members are ignored."""

    title: Title
    description: Description | None = None
    completed: Annotated[StrictBool, Field(description="`false` if absent")] = False

    model_config = ConfigDict(
        json_schema_extra={"example": {"title": "Buy milk", "description": "2 litres"}}
    )


class TaskUpdate(TypedDict, total=False):
    """What to change; an absent member stays as it is, `"description": null` clears it."""

    __pydantic_config__ = ConfigDict(  # type: ignore[misc]  # where pydantic looks for it
        json_schema_extra={"example": {"title": "Buy oat milk", "completed": True}}
    )

    title: Title
    description: Description | None
    completed: StrictBool


class TaskCompletion(BaseModel):
    """The state to set, whatever it was."""

    completed: StrictBool

    model_config = ConfigDict(json_schema_extra={"example": {"completed": True}})


def _true_or_false(text: object) -> object:
    if isinstance(text, str) and text not in ("true", "false"):
        raise PydanticCustomError("boolean", "Input should be true or false")
    return text


def _plain_decimal(text: object) -> object:
    if isinstance(text, str) and not _PLAIN_DECIMAL.fullmatch(text):
        raise PydanticCustomError("plain_decimal", "Input should be a plain whole number")
    return text


class ListQuery(BaseModel):
    """Which tasks are listed, in which order, and how many at a time.

    Of a parameter that is sent twice, the last one counts.
    """

    completed: Annotated[
        bool | None,
        BeforeValidator(_true_or_false),
        OrAbsent(),
        Field(description="Only tasks that are completed, or that are not", examples=[False]),
    ] = None
    search: Annotated[
        Search | None,
        OrAbsent(),
        Field(
            description=(
                "Only tasks that have this in their title or description, in capitals or not; "
                "`%`, `_` and `*` stand for themselves"
            ),
            examples=["milk"],
        ),
    ] = None
    sort: Annotated[
        Sort, Field(description="By what; a title by the code points of its characters")
    ] = "created_at"
    order: Annotated[Order, Field(description="The highest first, or the lowest")] = "desc"
    limit: Annotated[
        Limit | None,
        BeforeValidator(_plain_decimal),
        OrAbsent(),
        Field(
            description=(
                "At most so many. When there are more, `Link` and `X-Next-Cursor` say how to ask "
                "for them; without it, all are sent"
            ),
            examples=[50],
        ),
    ] = None
    cursor: Annotated[
        str | None,
        OrAbsent(),
        Field(
            description=(
                "Go on after a page: its `X-Next-Cursor`, with the same filters and order; "
                "`limit` may differ"
            ),
        ),
    ] = None

    model_config = ConfigDict(frozen=True)

    @property
    def filters(self) -> dict[str, bool | str]:
        """The filters that the request sets."""
        both = {"completed": self.completed, "search": self.search}
        return {name: value for name, value in both.items() if value is not None}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Returns itself: a frozen model needs no copy, and DirectRoute skips one per request."""
        return self


class TaskPublic(BaseModel):
    """A task as every endpoint returns it."""

    id: Annotated[int, Field(json_schema_extra={"format": "int64"})]
    user_id: str
    title: str
    description: str | None
    completed: bool
    created_at: Instant
    updated_at: Instant

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": 1,
                "user_id": "alice",
                "title": "Buy milk",
                "description": "2 litres",
                "completed": False,
                "created_at": "2026-01-31T09:00:00.000000Z",
                "updated_at": "2026-01-31T09:00:00.000000Z",
            }
        }
    )


# Writes rows as a JSON array. Their columns must be in the order of TaskPublic's members.
tasks_json = json_writer(TaskPublic)


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
    Path(
        description="The token's `sub`, percent-encoded",
        min_length=1,
        max_length=USER_ID_LENGTH,
        examples=["alice"],
    ),
    BeforeValidator(decode_user_id),
    AfterValidator(_user_id),
]

TaskId = Annotated[
    int,
    Path(description="The task's `id`", ge=1, examples=[7], json_schema_extra={"format": "int64"}),
    BeforeValidator(_task_id),
]
