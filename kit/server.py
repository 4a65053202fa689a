# [Task]: T070 [From]: specs/requirements.md
"""Runs an app under Granian with the service's settings.

A supervisor process imports the app once, forks the workers, and replaces workers that die.
"""

import errno
import logging
import multiprocessing
import os
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.utils.proxies import wrap_asgi_with_proxy_headers
from starlette.types import ASGIApp, Receive, Scope, Send

from settings import Settings, SettingsError

logger = logging.getLogger("tasks.serve")

# Seconds that a stop waits for requests in progress: the longest one plus part of its body.
STOP_TIMEOUT = 8
# Connections per worker that the kernel queues until they are accepted.
BACKLOG = 2048
# Bytes buffered per connection: of a request's head, and of a response that the client does not
# read.
BUFFER_SIZE = 64 * 1024
# Open files of one worker besides client connections: database files and the log.
OTHER_FILES = 64

# The service's format for all log lines, those of Granian and other libraries included.
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {},
    "handlers": {"lines": {"class": "kit.logs.LineHandler", "stream": "ext://sys.stderr"}},
    "loggers": {"_granian": {}, "tasks": {"level": "INFO"}},
    "root": {"handlers": ["lines"], "level": "WARNING"},
}


def held_address(settings: Settings) -> tuple[socket.socket, str, int]:
    """A socket that reserves HOST and PORT for the workers, with its address and port.

    Granian sets SO_REUSEPORT, so it would silently share a port that another process listens on.
    This function detects that first. Raises SettingsError.
    """
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found)  # IPv4 before IPv6.
        with socket.socket(family) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
            address = listening.getsockname()
        held = socket.socket(family)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except UnicodeError:
        raise SettingsError("HOST is not a name that a host can have: set another") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"PORT {port} is in use on {host}: stop what listens there, or set another PORT"
            ) from None
        raise SettingsError(
            f"HOST {host} and PORT {port} can't be listened on ({error.strerror}): set others"
        ) from None
    return held, str(address[0]), int(address[1])


def check_tls(settings: Settings) -> None:
    """Raises SettingsError if TLS_CERT and TLS_KEY can't be used."""
    if settings.tls_cert is None and settings.tls_key is None:
        return
    if settings.tls_cert is None or settings.tls_key is None:
        raise SettingsError("TLS_CERT and TLS_KEY belong together: set both, or neither")
    try:
        # Without `password`, OpenSSL would ask on the terminal for an encrypted key's password.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.tls_cert, settings.tls_key, password=""
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "a password"
        raise SettingsError(f"TLS_CERT and TLS_KEY can't be used ({reason})") from None
    if "-----BEGIN PRIVATE KEY-----" not in Path(settings.tls_key).read_text():
        raise SettingsError(
            "TLS_KEY must be in PKCS#8 form: openssl pkcs8 -topk8 -nocrypt -in KEY makes it"
        )


def connections(settings: Settings) -> int:
    """MAX_CONNECTIONS, or fewer if the limit of open files is too low."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        most = settings.max_connections + OTHER_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    other_files = OTHER_FILES + settings.database_pool_size
    if most - other_files < settings.max_connections:
        logger.warning("MAX_CONNECTIONS is above the limit of open files, which is %d", most)
    # At least a quarter of the limit: with one or two, an idle connection would block all others.
    return min(settings.max_connections, max(most - other_files, most // 4))


def with_root_path(app: ASGIApp, root_path: str) -> ASGIApp:
    """The app with `root_path` put back in front of each path, since the proxy removed it."""
    raw = root_path.encode()

    def prefixed(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            scope["root_path"] = root_path
            scope["path"] = root_path + scope["path"]
            scope["raw_path"] = raw + scope["raw_path"]
        return app(scope, receive, send)

    return prefixed


def as_served(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The app behind a proxy: it applies forwarded headers and ROOT_PATH to each request."""
    served = with_root_path(app, settings.root_path) if settings.root_path else app
    proxied: ASGIApp = wrap_asgi_with_proxy_headers(served, settings.forwarded_allow_ips)
    return proxied


def end_with_supervisor() -> None:
    """Have this worker stop when its supervisor is killed. Otherwise it would keep the port."""
    supervisor = multiprocessing.parent_process()

    def wait() -> None:
        if supervisor is not None:
            supervisor.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def reset_signals() -> None:
    """Remove the supervisor's signal handlers in a worker that was just forked.

    They would ignore a stop that comes before the worker has handlers of its own.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def serve(app: ASGIApp, settings: Settings, on_startup: Callable[[int], None] | None = None) -> int:
    """Serve until a signal stops it and return the exit status. `on_startup` gets the port.

    Raises SettingsError.
    """

    def load_app() -> ASGIApp:
        end_with_supervisor()
        return as_served(app, settings)

    check_tls(settings)
    held, host, port = held_address(settings)
    tls = settings.tls_cert is not None
    level = settings.log_level.upper()
    server = Granian(
        "the app",  # Not used, since the app is imported already.
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        workers=settings.workers,
        loop=Loops.uvloop,
        # It takes a tenth less CPU than Granian's default for ASGI (specs/decisions.md, D47).
        runtime_mode=RuntimeModes.st,
        http=HTTPModes.http1,
        websockets=False,
        backlog=BACKLOG,
        backpressure=connections(settings),
        http1_settings=HTTP1Settings(
            header_read_timeout=settings.keep_alive_timeout * 1000, max_buffer_size=BUFFER_SIZE
        ),
        log_level=LogLevels(settings.log_level),
        log_dictconfig=LOGGING | {"loggers": {**LOGGING["loggers"], "tasks": {"level": level}}},
        ssl_cert=Path(settings.tls_cert) if settings.tls_cert else None,
        ssl_key=Path(settings.tls_key) if settings.tls_key else None,
        ssl_protocol_min=SSLProtocols.tls12,
        respawn_failed_workers=True,
        workers_kill_timeout=STOP_TIMEOUT,
    )
    shown = f"[{host}]" if ":" in host else host
    logger.info(
        "serving on http%s://%s:%d with WORKERS=%d", "s" * tls, shown, port, settings.workers
    )
    if on_startup is not None:
        server.on_startup(lambda: on_startup(port))
    os.register_at_fork(after_in_child=reset_signals)
    with held:
        try:
            server.serve(target_loader=load_app, wrap_loader=False)
        except SystemExit as end:
            # A worker that got the signal itself may exit first, with a status other than 0.
            return 0 if server.interrupt_signal else int(end.code or 0)
    return 0
