# [Task]: T009 [From]: specs/design.md
"""What a database URL asks for: the driver's own form of it, its hosts, and TLS.

Connections are made of it in pool.py.
"""

import ipaddress
import re
import ssl
from collections.abc import Iterable
from typing import Any, cast
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from settings import SettingsError


class BadURL(ValueError):
    """A database URL can't be used. The message goes on after the setting's name."""


def connection_arguments(
    url: str, target: str = "read-write", setting: str = "DATABASE_URL"
) -> tuple[URL, dict[str, Any]]:
    """The driver's URL and connect arguments for what Neon, Heroku or a person writes.

    libpq's `sslmode`, `sslrootcert` and `channel_binding`, which asyncpg does not take from an
    SQLAlchemy URL, become its `ssl` argument. `target` is the target_session_attrs of several hosts
    whose URL says nothing of it. Raises SettingsError, which names the setting and never quotes the
    URL.
    """
    try:
        return _arguments(url.strip(), target)
    except BadURL as error:
        raise SettingsError(f"{setting} {error}") from None


def _arguments(text: str, target: str) -> tuple[URL, dict[str, Any]]:
    text, listed = _without_host_list(text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise BadURL(
            "is not a URL: it should look like "
            "postgresql://user:password@host/database or sqlite:///tasks.db"
        ) from None
    match url.drivername.partition("+")[0]:
        case "postgres" | "postgresql":
            return _postgresql_arguments(url, listed, target)
        case "sqlite":
            return url.set(drivername="sqlite+aiosqlite"), {}
        case _:
            raise BadURL("is of a database that is not supported: use postgresql:// or sqlite://")


def place(url: URL) -> str:
    """The driver's URL as the log may show it: without password and parameters."""
    hosts = url.query.get("host", "")
    if not isinstance(hosts, str) or "," not in hosts:
        return url.set(query={}).render_as_string()
    ports = cast(str, url.query["port"]).split(",")
    several = ",".join(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for host, port in zip(hosts.split(","), ports, strict=True)
    )
    shown = url.set(host=several, query={}).render_as_string()
    return shown.replace(f"[{several}]", several)  # It takes that for one IPv6 address.


def _without_host_list(url: str) -> tuple[str, str | None]:
    """The URL without a list of hosts, which SQLAlchemy can't read, and that list, if any."""
    found = _HOST_LIST.match(url)
    return (url[: found.start(1)] + url[found.end(1) :], found[1]) if found else (url, None)


def _postgresql_arguments(url: URL, listed: str | None, target: str) -> tuple[URL, dict[str, Any]]:
    query = dict(url.query)
    for name, value in url.query.items():
        if name not in _PARAMETERS or not isinstance(value, str):
            # Not named: it may be part of a password that should have been percent-encoded.
            raise BadURL(
                "has a parameter that is not supported, or one twice; supported are "
                + ", ".join(_PARAMETERS)
            )
    hosts, ports = _hosts(url, listed)
    arguments: dict[str, Any] = {
        "ssl": _ssl_argument(url, hosts),
        "server_settings": {
            "application_name": "task-api",
            **{name: query[name] for name in _SERVER_PARAMETERS if name in query},
        },
    }
    for name in _CACHE_SIZES:
        if name in query:
            if not str(query[name]).isdecimal():
                raise BadURL(f"is wrong: {name} must be a number")
            arguments[name] = int(str(query[name]))
    if query.get("pgbouncer") == "true":  # As Prisma is told of such a pooler.
        arguments.setdefault("statement_cache_size", 0)
    if len(hosts) > 1 or "target_session_attrs" in query:
        asked = query.get("target_session_attrs", target)
        if asked not in _TARGETS:
            raise BadURL(f"is wrong: target_session_attrs must be one of {', '.join(_TARGETS)}")
        arguments["target_session_attrs"] = asked
    where = {}
    if len(hosts) > 1:
        where = {"host": ",".join(hosts), "port": ",".join(map(str, ports))}
        url = url.set(host="", port=None)
    elif "host" in query:
        where = {"host": hosts[0]}
    if len(hosts) == 1 and "port" in query:
        url = url.set(port=ports[0])
    return url.set(drivername="postgresql+asyncpg", query=where), arguments


# After the user's name and password, in SQLAlchemy's reading: a slash may be part of either.
_HOST_LIST = re.compile(r"[\w+]+://(?:[^:/]*(?::[^@]*)?@)?+([^/?@]*,[^/?@]*)(?=[/?]|$)")
_LISTED_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+))(?::(.*))?")
_TARGETS = ("any", "primary", "standby", "prefer-standby", "read-write", "read-only")
_TLS_PARAMETERS = ("sslmode", "ssl", "sslrootcert", "channel_binding")
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
    "port",
    "target_session_attrs",
    "pgbouncer",
)


def _hosts(url: URL, listed: str | None) -> tuple[list[str], list[int]]:
    """Names and ports of the hosts; parameters count for more than what stands before the path."""
    names, ports = [url.host or ""], [str(url.port or "")]
    if listed is not None:
        found = [_LISTED_HOST.fullmatch(item) for item in listed.split(",")]
        names = [unquote(match[1] or match[2]) if match else "" for match in found]
        ports = [(match and match[3]) or "" for match in found]
    query = cast(dict[str, str], url.query)
    if "host" in query:
        names = query["host"].split(",")
    if "port" in query:
        ports = query["port"].split(",")
    if len(ports) == 1:
        ports *= len(names)
    if len(ports) != len(names) or (len(names) > 1 and not all(names)):
        raise BadURL(
            "is wrong: several hosts are written host1:5432,host2:5432, and a parameter port "
            "has one number for all of them or one for each"
        )
    if any("@" in name for name in names):
        raise BadURL("is wrong: an @ in its password must be written as %40")
    numbers = [int(port) if port.isdecimal() else 0 for port in (p or "5432" for p in ports)]
    if not all(0 < number < 65536 for number in numbers):
        raise BadURL("is wrong: a port must be a number from 1 to 65535")
    return names, numbers


def _ssl_argument(url: URL, hosts: Iterable[str]) -> ssl.SSLContext | str | bool:
    # asyncpg's name for it, and so SQLAlchemy's.
    name = "sslmode" if "sslmode" in url.query else "ssl"
    sslmode = url.query.get(name)
    if url.query.get("ssl", sslmode) != sslmode:
        raise BadURL("is wrong: sslmode and ssl differ: remove one of them")
    sslrootcert = cast(str | None, url.query.get("sslrootcert"))
    channel_binding = url.query.get("channel_binding")
    # Of several hosts, the one that is furthest away decides.
    mode = sslmode or ("prefer" if all(map(_is_local, hosts)) else "require")
    if channel_binding == "require":
        # asyncpg can't bind channels. What is asked for is that nobody stands in the middle, and a
        # certificate verified in full gives that as well.
        if sslmode in ("disable", "allow", "prefer"):
            raise BadURL(
                f"asks for {name}={sslmode} and channel_binding=require, "
                "which exclude each other: remove one of them"
            )
        mode = "verify-full"
    elif channel_binding not in (None, "prefer", "disable"):
        raise BadURL("is wrong: channel_binding must be require, prefer or disable")
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
                raise BadURL("is wrong: sslrootcert is not a readable file") from None
            context.check_hostname = mode == "verify-full"
            # libpq does not ask for what PostgreSQL's manual does not put into a certificate.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            return context
        case _:
            raise BadURL(
                f"is wrong: {name} must be disable, allow, prefer, require, verify-ca "
                "or verify-full"
            )


def _is_local(host: str) -> bool:
    if not host or host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
