# [Task]: T041 [From]: specs/requirements.md
"""The usual way: the same API as a FastAPI and SQLModel service is written by the tutorials.

Chained dependencies, a session dependency, ORM objects, response models, pre-ping; written to be
good at what it is, to compare with. `uvicorn --app-dir benchmarks usual:app`
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote
from uuid import uuid4

import jwt
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Request, Response, status
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import ConfigDict, StrictBool
from sqlalchemy import BigInteger, Column, DateTime, Text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlmodel import Field, SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

SECRET = os.environ["BETTER_AUTH_SECRET"]
URL = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://")

# As many connections as the others have. SQLAlchemy's default, 5 and in need 10 more, is a quarter
# slower: those 10 are opened and closed all the time.
engine = create_async_engine(URL, pool_pre_ping=True, pool_size=10, max_overflow=0)
new_session = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)


def utc_now() -> datetime:
    return datetime.now(UTC)


class TaskBase(SQLModel):
    model_config = ConfigDict(str_strip_whitespace=True)  # type: ignore[assignment]  # SQLModel's

    title: str = Field(min_length=1, max_length=200)
    description: str | None = Field(default=None, max_length=1000)
    completed: StrictBool = False


class Task(TaskBase, table=True):
    id: int | None = Field(default=None, sa_column=Column(BigInteger, primary_key=True))
    user_id: str = Field(sa_column=Column(Text, nullable=False, index=True))
    completed: bool = False
    created_at: datetime = Field(
        default_factory=utc_now, sa_column=Column(DateTime(timezone=True), nullable=False)
    )
    updated_at: datetime = Field(
        default_factory=utc_now, sa_column=Column(DateTime(timezone=True), nullable=False)
    )


class TaskCreate(TaskBase):
    pass


class TaskUpdate(SQLModel):
    model_config = ConfigDict(str_strip_whitespace=True)  # type: ignore[assignment]  # SQLModel's

    title: str = Field(default="", min_length=1, max_length=200)
    description: str | None = Field(default=None, max_length=1000)
    completed: StrictBool = False


class TaskCompletion(SQLModel):
    completed: StrictBool


class TaskPublic(SQLModel):
    id: int
    user_id: str
    title: str
    description: str | None
    completed: bool
    created_at: datetime
    updated_at: datetime


async def get_session() -> AsyncIterator[AsyncSession]:
    async with new_session() as session:
        try:
            yield session
            await session.commit()
        except BaseException:
            await session.rollback()
            raise


SessionDep = Annotated[AsyncSession, Depends(get_session)]

bearer = HTTPBearer(auto_error=False)


def unauthorized(detail: str, challenge: str = 'Bearer error="invalid_token"') -> HTTPException:
    headers = {"WWW-Authenticate": challenge}
    return HTTPException(status.HTTP_401_UNAUTHORIZED, detail, headers)


async def get_token(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> str:
    if credentials is None:
        raise unauthorized("Missing authorization token", "Bearer")
    return credentials.credentials


async def get_claims(token: Annotated[str, Depends(get_token)]) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(
            token, SECRET, algorithms=["HS256"], options={"require": ["exp", "sub"]}
        )
    except jwt.ExpiredSignatureError:
        raise unauthorized("Token has expired") from None
    except jwt.InvalidTokenError:
        raise unauthorized("Invalid token") from None
    return claims


async def get_current_user(claims: Annotated[dict[str, Any], Depends(get_claims)]) -> str:
    user: str = claims["sub"]
    return user


async def get_owner(
    user_id: Annotated[str, Path(min_length=1, max_length=255)],
    current_user: Annotated[str, Depends(get_current_user)],
) -> str:
    if user_id != current_user:
        raise HTTPException(status.HTTP_403_FORBIDDEN, "Access denied")
    return user_id


Owner = Annotated[str, Depends(get_owner)]
TaskId = Annotated[int, Path(ge=1, le=2**63 - 1)]


async def find_task(
    session: AsyncSession, owner: str, task_id: int, *, for_update: bool = False
) -> Task:
    statement = select(Task).where(Task.id == task_id, Task.user_id == owner)
    if for_update:
        statement = statement.with_for_update()
    task = (await session.exec(statement)).one_or_none()
    if task is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "Task not found")
    return task


async def save(session: AsyncSession, task: Task) -> Task:
    session.add(task)
    await session.commit()
    await session.refresh(task)
    return task


router = APIRouter(prefix="/api/{user_id}/tasks", tags=["tasks"])


@router.get("", response_model=list[TaskPublic])
async def list_tasks(owner: Owner, session: SessionDep) -> Any:
    statement = (
        select(Task)
        .where(Task.user_id == owner)
        .order_by(col(Task.created_at).desc(), col(Task.id).desc())
    )
    return (await session.exec(statement)).all()


@router.post("", response_model=TaskPublic, status_code=status.HTTP_201_CREATED)
async def create_task(
    owner: Owner, body: TaskCreate, session: SessionDep, response: Response
) -> Any:
    task = await save(session, Task(**body.model_dump(), user_id=owner))
    response.headers["Location"] = f"/api/{quote(owner, safe='')}/tasks/{task.id}"
    return task


@router.get("/{task_id}", response_model=TaskPublic)
async def get_task(owner: Owner, task_id: TaskId, session: SessionDep) -> Any:
    return await find_task(session, owner, task_id)


@router.put("/{task_id}", response_model=TaskPublic)
async def update_task(owner: Owner, task_id: TaskId, body: TaskUpdate, session: SessionDep) -> Any:
    task = await find_task(session, owner, task_id)
    changes = body.model_dump(exclude_unset=True)
    if any(getattr(task, name) != value for name, value in changes.items()):
        task.sqlmodel_update(changes)
        task.updated_at = utc_now()
    return await save(session, task)


@router.patch("/{task_id}/complete", response_model=TaskPublic)
async def complete_task(
    owner: Owner, task_id: TaskId, session: SessionDep, body: TaskCompletion | None = None
) -> Any:
    # Locked, since two toggles at once must both count.
    task = await find_task(session, owner, task_id, for_update=True)
    completed = not task.completed if body is None else body.completed
    if completed != task.completed:
        task.completed = completed
        task.updated_at = utc_now()
    return await save(session, task)


@router.delete("/{task_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_task(owner: Owner, task_id: TaskId, session: SessionDep) -> None:
    task = await find_task(session, owner, task_id)
    await session.delete(task)
    await session.commit()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    await engine.dispose()


app = FastAPI(title="Tasks", lifespan=lifespan)
app.add_middleware(
    CORSMiddleware,
    allow_origins=["http://localhost:3000"],
    allow_credentials=True,
    allow_methods=["*"],
    allow_headers=["*"],
)
app.include_router(router)


@app.middleware("http")
async def add_headers(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    response = await call_next(request)
    response.headers["X-Request-ID"] = request.headers.get("X-Request-ID") or uuid4().hex
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "private, no-cache"
    return response


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}
