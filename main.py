# [Task]: T013 [From]: specs/design.md
"""The service, put together: what is mounted, and what a request passes on its way in.

RequestMiddleware   an id, headers, the path        middleware/request.py
AllowedOrigins      CORS                            middleware/cors.py
UnhandledErrors     a bug becomes a 500             middleware/errors.py
DirectRoute         calls what follows              routes/direct.py
verify_user_access  may it?                         middleware/auth.py
an endpoint         what is done                    routes/tasks.py
a Statement         how it is kept                  queries.py, database/
"""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from database.tables import keep_tables
from db import open_database
from errors import install_error_handlers
from logs import request_ids_in_logs
from middleware.cors import AllowedOrigins
from middleware.errors import UnhandledErrors
from middleware.request import RequestMiddleware
from middleware.startup import PlainStartupErrors
from routes import health, tasks
from settings import get_settings
from tokens.verify import open_verifier


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Check the settings, open the database, and close it at the end. Raises SettingsError."""
    settings = get_settings()
    with request_ids_in_logs():
        async with (
            open_verifier(settings) as token_verifier,
            open_database(settings) as database,
        ):
            app.state.token_verifier = token_verifier
            app.state.database = database
            await keep_tables(database)
            try:
                yield
            finally:
                _stop_in_order()
                del app.state.database, app.state.token_verifier


def _stop_in_order() -> None:
    """Let an orderly stop by SIGTERM end with status 0.

    uvicorn raises the signal once more when it has stopped, and would be killed by it as if it had
    crashed. Blocked, the signal stays pending until the process has ended by itself.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(getattr(handler, "__self__", None), uvicorn.Server):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


app = FastAPI(
    title="Task API",
    description="Keeps the tasks of a web frontend's users.",
    version="0.1.0",
    lifespan=lifespan,
    redirect_slashes=False,
    # Not include_router, which looks for a request's route twice and drops DirectRoute.
    routes=[*tasks.router.routes, *health.router.routes],
)
install_error_handlers(app)
# The last one added is the outermost.
app.add_middleware(UnhandledErrors)
app.add_middleware(AllowedOrigins)
app.add_middleware(RequestMiddleware)
app.add_middleware(PlainStartupErrors)
