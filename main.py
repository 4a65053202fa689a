# [Task]: T013 [From]: specs/design.md
"""The app: its lifespan and its routes. A request passes these, in this order:

RequestMiddleware   request id, CORS, error answers  kit/middleware.py
RouteTable          finds the route                  kit/routing.py
DirectRoute         calls dependencies and endpoint  kit/routing.py
verify_user_access  checks the token                 middleware/auth.py
an endpoint         does the work                    routes/tasks.py
a Statement         reads or writes the table        tasks/queries.py, kit/database/
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from db import keep_tables, open_database
from kit import documentation
from kit.access_log import access_log
from kit.errors import install_error_handlers
from kit.logs import service_logs
from kit.long_answers import LongAnswers
from kit.routing import TaskAPI
from kit.telemetry.start import open_telemetry
from kit.tokens import open_verifier
from middleware.auth import verify_user_access
from routes import health, tasks
from settings import get_settings
from tasks.limits import TaskLimit
from tasks.tombstones import Tombstones

logger = logging.getLogger("tasks.settings")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open what the service needs and close it at the end. Raises SettingsError."""
    settings = get_settings()
    with service_logs(settings), access_log.opened(settings):
        for warning in settings.warnings:
            logger.warning("%s", warning)
        async with (
            open_verifier(settings) as token_verifier,
            open_database(settings) as database,
            open_telemetry(app, database, verify_user_access),
        ):
            app.state.token_verifier = token_verifier
            app.state.database = database
            app.state.task_limit = TaskLimit(database)
            app.state.tombstones = Tombstones(database)
            app.state.long_answers = LongAnswers()
            await keep_tables(database)
            try:
                yield
            finally:
                del app.state.long_answers, app.state.tombstones, app.state.task_limit
                del app.state.database, app.state.token_verifier


app = TaskAPI(
    title="Task API",
    description="Keeps the tasks of a web frontend's users.",
    version="1.0.0",
    license_info={"name": "MIT", "identifier": "MIT"},
    servers=[{"url": "/", "description": "The server that this document comes from"}],
    openapi_tags=[
        {"name": "tasks", "description": "A user's own tasks, with the user's token"},
        {"name": "health", "description": "For uptime probes and balancers, without a token"},
    ],
    lifespan=lifespan,
    redirect_slashes=False,
    # kit/documentation.py serves these, so that API_DOCS can turn them off.
    openapi_url=None,
    docs_url=None,
    redoc_url=None,
    # include_router would look up each route twice and would not use DirectRoute.
    routes=[*tasks.router.routes, *health.router.routes, *documentation.routes],
)
install_error_handlers(app)
