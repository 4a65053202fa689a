# [Task]: T061 [From]: specs/requirements.md
"""`python -m serve`: the app under uvicorn, as the settings say, in one process or in several.

The limits of connections are kept under any uvicorn: connections.py.
"""

import errno
import logging
import logging.config
import socket
import sys
from contextlib import suppress
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from kit.database.database import new_database
from models import TASK_TABLE
from settings import Settings, SettingsError, get_settings

# Which uvicorn sets up; this service's own are set up when it has started.
logger = logging.getLogger("uvicorn.error")

# uvicorn's own, but that all lines have this service's form, those of the parent process included.
LOGGING: dict[str, Any] = {
    **LOGGING_CONFIG,
    "formatters": {
        **LOGGING_CONFIG["formatters"],
        "default": {"()": "kit.logs.LineFormatter", "stream": "ext://sys.stderr"},
    },
}


def configuration(settings: Settings) -> uvicorn.Config:
    """How uvicorn is to run the app."""
    return uvicorn.Config(
        "main:app",
        workers=settings.workers,
        log_config=LOGGING,
        log_level=settings.log_level,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_keep_alive=settings.keep_alive_timeout,
    )


def bound_socket(settings: Settings) -> socket.socket:
    """A socket at HOST and PORT. Raises SettingsError if it can't be had."""
    host, port = settings.host, settings.port
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        # Whoever has bound it too, but does not listen yet, is noticed only now.
        bound.listen()
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"PORT {port} is in use on {host}: stop what listens there, or set another PORT"
            ) from None
        raise SettingsError(
            f"HOST {host} and PORT {port} can't be listened on ({error.strerror}): set others"
        ) from None
    return bound


def address(bound: socket.socket) -> str:
    """The URL of a socket's host and port."""
    host, port, *_ = bound.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def main() -> int:
    """Serve until a signal ends it; the exit status."""
    logging.config.dictConfig(LOGGING)
    try:
        settings = get_settings()
        # Here, for one sentence in place of one from each worker.
        new_database(settings, TASK_TABLE)
        bound = bound_socket(settings)
    except SettingsError as error:
        logger.error("%s", error)
        return STARTUP_FAILURE
    config = configuration(settings)
    logger.info("serving on %s with WORKERS=%d", address(bound), settings.workers)
    with suppress(KeyboardInterrupt):
        if settings.workers > 1:
            supervisor = Multiprocess(config, [bound])
            supervisor.run()
            failed = any(one.exitcode == STARTUP_FAILURE for one in supervisor.processes)
            return STARTUP_FAILURE if failed else 0
        uvicorn.Server(config).run([bound])
    return 0


if __name__ == "__main__":
    sys.exit(main())
