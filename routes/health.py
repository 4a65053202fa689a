# [Task]: T012 [From]: specs/requirements.md
"""Is the process alive? Public, and never a question to the database."""

from fastapi import APIRouter, Response

router = APIRouter(tags=["health"])

_OK = b'{"status":"ok"}'


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> Response:
    """The service is up."""
    return Response(_OK, media_type="application/json", headers={"Cache-Control": "no-store"})
