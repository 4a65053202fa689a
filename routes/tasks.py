# [Task]: T010 [From]: specs/requirements.md
"""The six task endpoints.

middleware/auth.py decides who may call them. tasks/ has the statements and the rules they use.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic_core import to_json
from sqlmodel.ext.asyncio.session import AsyncSession

from db import ReadSessionDep, SessionDep, utc_now
from errors import (
    InvalidCursor,
    PreconditionFailed,
    SearchTooSlow,
    TaskLimitReached,
    TaskNotFound,
    TooManyTags,
)
from kit.body import JsonBody, OptionalJsonBody, ignored_body
from kit.errors import (
    INTERNAL_ERROR,
    AccessDenied,
    BodyLost,
    BodyTimeout,
    BodyTooLarge,
    DatabaseUnavailable,
    ExpiredToken,
    InvalidToken,
    MissingToken,
    UnsupportedMediaType,
    error_responses,
    invalid_input,
)
from kit.openapi import operation_id, with_headers
from kit.routing import DirectRoute
from middleware.auth import verify_user_access
from schemas import (
    ListQuery,
    TaskCompletion,
    TaskCreate,
    TaskId,
    TaskPublic,
    TaskUpdate,
    UserId,
)
from tasks.conditional import (
    IfMatch,
    IfNoneMatch,
    IfNoneMatchOfWrite,
    etag,
    not_modified,
    precondition,
    unless_known,
)
from tasks.idempotency import KEY_LIFETIME, IdempotencyKey, first_answer, is_replay, new_mark
from tasks.limits import TaskLimit, task_limit
from tasks.lists import list_answer, long_answers, whole_list
from tasks.paging import next_page, tasks_path, values_of
from tasks.queries import (
    COMPLETE,
    CREATE,
    CREATE_ONCE,
    CREATE_ONCE_WITHIN,
    CREATE_WITHIN,
    DELETE,
    GET,
    MAKE_TOMBSTONE,
    UPDATE,
    Change,
    created_values,
    listing,
    updated_values,
)
from tasks.tombstones import Tombstones, tombstones

router = APIRouter(
    prefix="/api/{user_id}/tasks",
    route_class=DirectRoute,
    tags=["tasks"],
    dependencies=[Depends(verify_user_access)],
    responses=error_responses(
        MissingToken, InvalidToken, ExpiredToken, AccessDenied, DatabaseUnavailable
    )
    | invalid_input(
        "path",
        "task_id",
        kind="task_id",
        message="Input should be a whole number from 1 to 2^63-1",
    )
    | INTERNAL_ERROR,
    generate_unique_id_function=operation_id,
)

# Errors of requests with a body: one that is ignored, or one in JSON.
_BODY_ERRORS = (BodyLost, BodyTimeout)
_JSON_BODY_ERRORS = (*_BODY_ERRORS, BodyTooLarge, UnsupportedMediaType)
_IGNORED_BODY = [Depends(ignored_body)]

create_body = JsonBody(TaskCreate)
update_body = JsonBody(TaskUpdate)
completion_body = OptionalJsonBody(TaskCompletion)


def _task(row: dict[str, Any], status: int = 200, **headers: str) -> Response:
    return Response(to_json(row), status, {"ETag": etag(row), **headers}, "application/json")


def _created(request: Request, row: dict[str, Any], **headers: str) -> Response:
    location = f"{tasks_path(request, row['user_id'])}/{row['id']}"
    return _task(row, 201, Location=location, **headers)


async def _change(
    session: AsyncSession,
    if_match: str | None,
    if_none_match: str | None,
    *changes: Change,
    **values: Any,
) -> dict[str, Any]:
    """Try the changes in turn and return the row of the first that matches the task.

    Raises TaskNotFound, PreconditionFailed or TooManyTags.
    """
    condition = precondition(values["task_id"], if_match, if_none_match)
    for change in changes:
        row = await change.row(session, condition, **values)
        if row is not None:
            return row
    if condition is not None:
        task = await GET.row(session, owner=values["owner"], task_id=values["task_id"])
        if task is not None:
            raise PreconditionFailed("the task has another version", etag(task))
    raise TaskNotFound


@router.head("", dependencies=_IGNORED_BODY, include_in_schema=False)
@router.get(
    "",
    dependencies=_IGNORED_BODY,
    response_model=list[TaskPublic],
    responses=error_responses(InvalidCursor, DatabaseUnavailable, SearchTooSlow, *_BODY_ERRORS)
    | invalid_input(
        "query",
        "sort",
        kind="literal_error",
        message="Input should be 'created_at', 'updated_at' or 'title'",
    )
    | with_headers(200, "ETag.list", "Link", "X-Next-Cursor")
    | not_modified("ETag.list"),
)
async def list_tasks(
    request: Request,
    user_id: UserId,
    session: ReadSessionDep,
    query: Annotated[ListQuery, Query()],
    if_none_match: IfNoneMatch = None,
) -> Response:
    """All tasks of the user, newest first; or some of them, in another order, page by page."""
    values = {"owner": user_id, **query.filters, **values_of(query, user_id)}
    statement = listing(query.sort, query.order, *query.filters, goes_on=query.cursor is not None)
    with long_answers(request).share(user_id) as share:
        headers = {}
        if query.limit is None:
            records = await whole_list(statement, session, share, **values)
        else:
            records = await statement.records(session, **values, part=query.limit + 1)
            if len(records) > query.limit:
                records = records[: query.limit]
                headers = next_page(request, query, user_id, statement.named(records[-1]))
        return unless_known(await list_answer(records, share, headers), if_none_match)


@router.post(
    "",
    status_code=201,
    response_model=TaskPublic,
    responses=error_responses(TaskLimitReached, *_JSON_BODY_ERRORS)
    | invalid_input(
        "body",
        "title",
        kind="string_too_short",
        message="String should have at least 1 character",
    )
    | with_headers(201, "ETag", "Location", "Idempotency-Replayed"),
    openapi_extra=create_body.openapi(),
)
async def create_task(
    request: Request,
    user_id: UserId,
    body: Annotated[TaskCreate, Depends(create_body)],
    limit: Annotated[TaskLimit, Depends(task_limit)],
    session: SessionDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Add a task; with an Idempotency-Key, one for all requests that have it."""
    values: dict[str, Any] = {
        "owner": user_id,
        **created_values(body),
        "now": utc_now(),
    }
    counted = limit.must_count(user_id)
    if counted:
        values["task_limit"] = limit.tasks
    if idempotency_key is None:
        row = await (CREATE_WITHIN if counted else CREATE).row(session, **values)
        if row is None:
            raise limit.reached()
        return _created(request, row)
    mark = new_mark(body)
    values |= {"idempotency_key": idempotency_key, "idempotency_mark": mark}
    row = await (CREATE_ONCE_WITHIN if counted else CREATE_ONCE).row(session, **values)
    if row is None:
        raise limit.reached()
    replayed = is_replay(row.pop("idempotency_mark"), mark)
    headers = {"Idempotency-Replayed": "true"} if replayed else {}
    return _created(request, first_answer(row, body), **headers)


@router.head("/{task_id}", dependencies=_IGNORED_BODY, include_in_schema=False)
@router.get(
    "/{task_id}",
    dependencies=_IGNORED_BODY,
    response_model=TaskPublic,
    responses=error_responses(TaskNotFound, *_BODY_ERRORS)
    | with_headers(200, "ETag")
    | not_modified("ETag"),
)
async def get_task(
    user_id: UserId, task_id: TaskId, session: ReadSessionDep, if_none_match: IfNoneMatch = None
) -> Response:
    """One task."""
    row = await GET.row(session, owner=user_id, task_id=task_id)
    if row is None:
        raise TaskNotFound
    return unless_known(_task(row), if_none_match)


@router.put(
    "/{task_id}",
    response_model=TaskPublic,
    responses=error_responses(TaskNotFound, PreconditionFailed, TooManyTags, *_JSON_BODY_ERRORS)
    | with_headers(200, "ETag"),
    openapi_extra=update_body.openapi(),
)
async def update_task(
    user_id: UserId,
    task_id: TaskId,
    body: Annotated[TaskUpdate, Depends(update_body)],
    session: SessionDep,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatchOfWrite = None,
) -> Response:
    """Change what the body names and leave the rest."""
    row = await _change(
        session,
        if_match,
        if_none_match,
        UPDATE,
        owner=user_id,
        task_id=task_id,
        **updated_values(body),
        now=utc_now(),
    )
    return _task(row)


@router.delete(
    "/{task_id}",
    status_code=204,
    dependencies=_IGNORED_BODY,
    responses=error_responses(TaskNotFound, PreconditionFailed, TooManyTags, *_BODY_ERRORS),
)
async def delete_task(
    user_id: UserId,
    task_id: TaskId,
    kept: Annotated[Tombstones | None, Depends(tombstones)],
    session: SessionDep,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatchOfWrite = None,
) -> Response:
    """Remove a task for good."""
    now = utc_now()
    values = {"owner": user_id, "task_id": task_id, "now": now, "expired": now - KEY_LIFETIME}
    row = await _change(session, if_match, if_none_match, DELETE, MAKE_TOMBSTONE, **values)
    if "deleted_at" in row and kept is not None:
        kept.add(user_id)
    return Response(status_code=204)


@router.patch(
    "/{task_id}/complete",
    response_model=TaskPublic,
    responses=error_responses(TaskNotFound, PreconditionFailed, TooManyTags, *_JSON_BODY_ERRORS)
    | with_headers(200, "ETag"),
    openapi_extra=completion_body.openapi(required=False),
)
async def complete_task(
    user_id: UserId,
    task_id: TaskId,
    body: Annotated[TaskCompletion | None, Depends(completion_body)],
    session: SessionDep,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatchOfWrite = None,
) -> Response:
    """Toggle `completed`, or set it to what the body says, which is safe to repeat."""
    row = await _change(
        session,
        if_match,
        if_none_match,
        COMPLETE,
        owner=user_id,
        task_id=task_id,
        new_completed=None if body is None else body.completed,
        now=utc_now(),
    )
    return _task(row)
