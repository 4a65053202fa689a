# [Task]: T012 [From]: specs/requirements.md
"""Public endpoints for probes and load balancers: service name, liveness, readiness."""

from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from db import Database
from kit import documentation
from kit.errors import DatabaseUnavailable, error_responses
from kit.openapi import operation_id
from kit.routing import DirectRoute
from settings import get_settings

router = APIRouter(
    route_class=DirectRoute, tags=["health"], generate_unique_id_function=operation_id
)


class Health(BaseModel):
    """The process is up."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """The service can serve."""

    status: Literal["ready"]


_OK = b'{"status":"ok"}'
_READY = b'{"status":"ready"}'


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """The service's name, and the path of its documentation if API_DOCS is on."""
    content = {"service": request.app.title}
    if get_settings().api_docs:
        content["docs"] = request.scope.get("root_path", "").rstrip("/") + documentation.PAGE
    return JSONResponse(content)


@router.head("/health", include_in_schema=False)
@router.get("/health", response_model=Health)
async def health() -> Response:
    """The process is up. Never a question to the database."""
    return Response(_OK, media_type="application/json", headers={"Cache-Control": "no-store"})


@router.head("/health/ready", include_in_schema=False)
@router.get(
    "/health/ready", response_model=Readiness, responses=error_responses(DatabaseUnavailable)
)
async def ready(request: Request) -> Response:
    """The database was last seen working. It is asked only while it was last seen failing, so that
    probing leaves a suspended database asleep.
    """
    database: Database | None = getattr(request.app.state, "database", None)
    if database is None or not await database.is_ready():
        raise DatabaseUnavailable("not ready")
    return Response(_READY, media_type="application/json", headers={"Cache-Control": "no-store"})
