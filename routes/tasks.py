# [Task]: T010 [From]: specs/requirements.md
"""The six task endpoints: what each does, and the one statement it does it with.

Who may call them is decided in middleware/auth.py, how a statement is run in statements.py.
"""

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Response
from pydantic_core import to_json
from sqlalchemy import (
    Boolean,
    ColumnElement,
    String,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    not_,
    or_,
    select,
    update,
)

from db import SessionDep
from errors import (
    AccessDenied,
    BodyTooLarge,
    DatabaseUnavailable,
    InvalidToken,
    TaskNotFound,
    UnsupportedMediaType,
    error_responses,
)
from middleware.auth import verify_user_access
from models import TASK_TABLE, UTCDateTime, advance, rfc3339, utc_now
from routes.body import JsonBody, OptionalJsonBody
from routes.direct import DirectRoute
from schemas import (
    TaskCompletion,
    TaskCreate,
    TaskId,
    TaskPublic,
    TaskUpdate,
    UserId,
)
from statements import Statement

router = APIRouter(
    prefix="/api/{user_id}/tasks",
    route_class=DirectRoute,
    tags=["tasks"],
    dependencies=[Depends(verify_user_access)],
    responses=error_responses(InvalidToken, AccessDenied, DatabaseUnavailable),
)

create_body = JsonBody(TaskCreate)
update_body = JsonBody(TaskUpdate)
completion_body = OptionalJsonBody(TaskCompletion)

_task = TASK_TABLE.c
# A task as clients see it: rows of these columns are JSON without another word.
_public = (
    _task.id,
    _task.user_id,
    _task.title,
    _task.description,
    _task.completed,
    rfc3339(_task.created_at).label("created_at"),
    rfc3339(_task.updated_at).label("updated_at"),
)
_now = bindparam("now", type_=UTCDateTime())
_new_title = bindparam("new_title", type_=String())
_new_description = bindparam("new_description", type_=String())
_new_completed = bindparam("new_completed", type_=Boolean())


def _owned(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """The rows a statement may touch: those of the bind `owner`. The one place that says so."""
    return and_(_task.user_id == bindparam("owner"), *conditions)


_this_task = _owned(_task.id == bindparam("task_id"))


def _update(**values: ColumnElement[Any]) -> Statement:
    """An UPDATE that moves `updated_at` when one of the values is a change, and only then."""
    changed = or_(*(value.is_distinct_from(_task[name]) for name, value in values.items()))
    moved = case((changed, advance(_now, _task.updated_at)), else_=_task.updated_at)
    return Statement(
        update(TASK_TABLE).where(_this_task).values(**values, updated_at=moved).returning(*_public)
    )


# A limit that is none, the greatest bigint, in a form that PostgreSQL can't see through while it
# plans. It then expects to need a part of the rows, and reads them off the index in order, where it
# might else gather and sort them (tests/faults/test_plans.py).
_no_limit = select(literal_column("9223372036854775807")).scalar_subquery()

LIST = Statement(
    select(*_public)
    .where(_owned())
    .order_by(_task.created_at.desc(), _task.id.desc())
    .limit(_no_limit)
)
CREATE = Statement(
    insert(TASK_TABLE)
    .values(
        user_id=bindparam("owner"),
        title=_new_title,
        description=_new_description,
        completed=_new_completed,
        created_at=_now,
        updated_at=_now,
    )
    .returning(*_public)
)
GET = Statement(select(*_public).where(_this_task))
# A NULL title or completed stands for "as it is"; a description may be set to NULL, hence the flag.
UPDATE = _update(
    title=func.coalesce(_new_title, _task.title),
    description=case(
        (bindparam("describe", type_=Boolean()), _new_description), else_=_task.description
    ),
    completed=func.coalesce(_new_completed, _task.completed),
)
COMPLETE = _update(completed=func.coalesce(_new_completed, not_(_task.completed)))
DELETE = Statement(delete(TASK_TABLE).where(_this_task).returning(_task.id))


def _one(row: dict[str, Any] | None) -> Response:
    if row is None:
        raise TaskNotFound
    return Response(to_json(row), media_type="application/json")


@router.get("", response_model=list[TaskPublic])
async def list_tasks(user_id: UserId, session: SessionDep) -> Response:
    """All tasks of the user, newest first."""
    rows = await LIST.rows(session, owner=user_id)
    return Response(to_json(rows), media_type="application/json")


@router.post(
    "",
    status_code=201,
    response_model=TaskPublic,
    responses=error_responses(BodyTooLarge, UnsupportedMediaType),
    openapi_extra=create_body.openapi(),
)
async def create_task(
    user_id: UserId, body: Annotated[TaskCreate, Depends(create_body)], session: SessionDep
) -> Response:
    """Add a task."""
    [row] = await CREATE.rows(
        session,
        owner=user_id,
        new_title=body.title,
        new_description=body.description,
        new_completed=body.completed,
        now=utc_now(),
    )
    response = _one(row)
    response.status_code = 201
    response.headers["Location"] = f"/api/{quote(user_id, safe='')}/tasks/{row['id']}"
    return response


@router.get("/{task_id}", response_model=TaskPublic, responses=error_responses(TaskNotFound))
async def get_task(user_id: UserId, task_id: TaskId, session: SessionDep) -> Response:
    """One task."""
    return _one(await GET.row(session, owner=user_id, task_id=task_id))


@router.put(
    "/{task_id}",
    response_model=TaskPublic,
    responses=error_responses(TaskNotFound, BodyTooLarge, UnsupportedMediaType),
    openapi_extra=update_body.openapi(),
)
async def update_task(
    user_id: UserId,
    task_id: TaskId,
    body: Annotated[TaskUpdate, Depends(update_body)],
    session: SessionDep,
) -> Response:
    """Change what the body names and leave the rest."""
    row = await UPDATE.row(
        session,
        owner=user_id,
        task_id=task_id,
        new_title=body.get("title"),
        describe="description" in body,
        new_description=body.get("description"),
        new_completed=body.get("completed"),
        now=utc_now(),
    )
    return _one(row)


@router.delete("/{task_id}", status_code=204, responses=error_responses(TaskNotFound))
async def delete_task(user_id: UserId, task_id: TaskId, session: SessionDep) -> Response:
    """Remove a task for good."""
    if await DELETE.row(session, owner=user_id, task_id=task_id) is None:
        raise TaskNotFound
    return Response(status_code=204)


@router.patch(
    "/{task_id}/complete",
    response_model=TaskPublic,
    responses=error_responses(TaskNotFound, BodyTooLarge, UnsupportedMediaType),
    openapi_extra=completion_body.openapi(required=False),
)
async def complete_task(
    user_id: UserId,
    task_id: TaskId,
    body: Annotated[TaskCompletion | None, Depends(completion_body)],
    session: SessionDep,
) -> Response:
    """Toggle `completed`, or set it to what the body says, which is safe to repeat."""
    row = await COMPLETE.row(
        session,
        owner=user_id,
        task_id=task_id,
        new_completed=None if body is None else body.completed,
        now=utc_now(),
    )
    return _one(row)
