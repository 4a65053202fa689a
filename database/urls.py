# [Task]: T009 [From]: specs/design.md
"""What a database URL asks for: the driver's own form of it, and TLS.

Connections are made of it in pool.py.
"""

import ipaddress
import ssl
from typing import Any, cast

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from settings import SettingsError


def connection_arguments(url: str) -> tuple[URL, dict[str, Any]]:
    """The driver's URL and connect arguments for what Neon, Heroku or a person writes.

    libpq's `sslmode`, `sslrootcert` and `channel_binding`, which asyncpg does not take from an
    SQLAlchemy URL, become its `ssl` argument. Raises SettingsError, which never quotes the URL.
    """
    try:
        parsed = make_url(url.strip())
    except (ArgumentError, ValueError):
        raise SettingsError(
            "DATABASE_URL is not a URL: it should look like "
            "postgresql://user:password@host/database or sqlite:///tasks.db"
        ) from None
    match parsed.drivername.partition("+")[0]:
        case "postgres" | "postgresql":
            return _postgresql_arguments(parsed)
        case "sqlite":
            return parsed.set(drivername="sqlite+aiosqlite"), {}
        case _:
            raise SettingsError(
                "DATABASE_URL is of a database that is not supported: use postgresql:// or sqlite://"
            )


def _postgresql_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    query = dict(url.query)
    for name, value in url.query.items():
        if name not in _PARAMETERS or not isinstance(value, str):
            # Not named: it may be part of a password that should have been percent-encoded.
            raise SettingsError(
                "DATABASE_URL has a parameter that is not supported, or one twice; supported are "
                + ", ".join(_PARAMETERS)
            )
    arguments: dict[str, Any] = {
        "ssl": _ssl_argument(url),
        "server_settings": {
            "application_name": "task-api",
            **{name: query[name] for name in _SERVER_PARAMETERS if name in query},
        },
    }
    if "," in (query.get("host") or url.host or ""):
        raise SettingsError("DATABASE_URL names several hosts: name one, which may be a proxy's")
    for name in _CACHE_SIZES:
        if name in query:
            if not str(query[name]).isdecimal():
                raise SettingsError(f"DATABASE_URL: {name} must be a number")
            arguments[name] = int(str(query[name]))
    if query.get("pgbouncer") == "true":  # As Prisma is told of such a pooler.
        arguments.setdefault("statement_cache_size", 0)
    socket_folder = {"host": query["host"]} if "host" in query else {}
    return url.set(drivername="postgresql+asyncpg", query=socket_folder), arguments


_TLS_PARAMETERS = ("sslmode", "sslrootcert", "channel_binding")
_SERVER_PARAMETERS = ("application_name", "options")
# What the two caches of prepared statements hold; an old pooler wants the driver's at 0.
_CACHE_SIZES = ("statement_cache_size", "prepared_statement_cache_size")
# Addressed to other clients, such as Prisma; this service's own settings say the same.
_IGNORED_PARAMETERS = ("connection_limit", "pool_timeout", "connect_timeout")
_PARAMETERS = (
    *_TLS_PARAMETERS,
    *_SERVER_PARAMETERS,
    *_CACHE_SIZES,
    *_IGNORED_PARAMETERS,
    "host",
    "pgbouncer",
)


def _ssl_argument(url: URL) -> ssl.SSLContext | str | bool:
    sslmode = url.query.get("sslmode")
    sslrootcert = cast(str | None, url.query.get("sslrootcert"))
    channel_binding = url.query.get("channel_binding")
    mode = sslmode or ("prefer" if _is_local(url) else "require")
    if channel_binding == "require":
        # asyncpg can't bind channels. What is asked for is that nobody stands in the middle, and a
        # certificate verified in full gives that as well.
        if sslmode in ("disable", "allow", "prefer"):
            raise SettingsError(
                f"DATABASE_URL asks for sslmode={sslmode} and channel_binding=require, "
                "which exclude each other: remove one of them"
            )
        mode = "verify-full"
    elif channel_binding not in (None, "prefer", "disable"):
        raise SettingsError("DATABASE_URL: channel_binding must be require, prefer or disable")
    if mode == "require" and sslrootcert is not None:
        mode = "verify-ca"  # As libpq does.
    match mode:
        case "disable":
            return False
        case "allow" | "prefer":
            return str(mode)
        case "require":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        case "verify-ca" | "verify-full":
            cafile = None if sslrootcert == "system" else sslrootcert
            try:
                context = ssl.create_default_context(cafile=cafile)
            except (OSError, ssl.SSLError):
                raise SettingsError("DATABASE_URL: sslrootcert is not a readable file") from None
            context.check_hostname = mode == "verify-full"
            # libpq does not ask for what PostgreSQL's manual does not put into a certificate.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            return context
        case _:
            raise SettingsError(
                "DATABASE_URL: sslmode must be disable, allow, prefer, require, verify-ca "
                "or verify-full"
            )


def _is_local(url: URL) -> bool:
    host = url.query.get("host") or url.host  # In the driver's order.
    if not isinstance(host, str) or host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
