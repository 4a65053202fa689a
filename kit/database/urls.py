# [Task]: T009 [From]: specs/design.md
"""Parses a database URL into the driver's arguments: hosts, schemas and timeouts.

tls.py reads the TLS parameters. pool.py makes the connections.
"""

import ipaddress
import re
from typing import Any, NamedTuple, cast
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from kit.database.tls import BadTLS, tls_attempts
from settings import SettingsError

# Seconds. A longer connect_timeout would make requests wait too long.
LONGEST_CONNECT_TIMEOUT = 5.0


class BadURL(ValueError):
    """A database URL can't be used. The message continues a sentence after the setting's name."""


class DatabaseURL(NamedTuple):
    """A parsed database URL."""

    # For SQLAlchemy's create_async_engine.
    url: URL
    # For the driver's `connect`.
    arguments: dict[str, Any]
    # The table `task` is in the first of these schemas. Empty for the server's own search path.
    search_path: tuple[str, ...] = ()
    # Seconds that one statement may take, if the URL says so.
    statement_timeout: float | None = None
    # Parameters that have no effect here.
    ignored: tuple[str, ...] = ()


def read_url(text: str, target: str = "read-write", setting: str = "DATABASE_URL") -> DatabaseURL:
    """Parse a URL in the forms that Neon, Heroku, libpq, Prisma and people write.

    `target` is the default of target_session_attrs for several hosts. Raises SettingsError, which
    names the setting and never quotes the URL.
    """
    try:
        return _read(_unwrapped(text), target)
    except (BadURL, BadTLS) as error:
        raise SettingsError(f"{setting} {error}") from None


def _unwrapped(text: str) -> str:
    """The URL without a `psql` command or quotes around it."""
    text = re.sub(r"^psql\s+", "", text.strip())
    if text[:1] in ("'", '"') and text[-1:] == text[:1]:
        text = text[1:-1].strip()
    return re.sub(r"^[\w+]+(?=:)", lambda scheme: scheme[0].lower(), text)


_WHAT_TO_PASTE = {
    "jdbc": "is a URL for Java: write it as postgresql://user:password@host/database",
    "cockroachdb": "is of CockroachDB, which lacks what this service needs of PostgreSQL: "
    "use a PostgreSQL server",
    "prisma": "is of a proxy that speaks to Prisma alone: paste the URL of the database itself, "
    "which begins with postgresql://",
    "http": "is the address of a web page: paste the connection string of the database, which "
    "begins with postgresql://",
}
_WHAT_TO_PASTE["https"] = _WHAT_TO_PASTE["http"]
_WHAT_TO_PASTE["cockroach"] = _WHAT_TO_PASTE["cockroachdb"]


def _read(text: str, target: str) -> DatabaseURL:
    try:
        text.encode()
    except UnicodeEncodeError:  # The environment's bytes, as lone surrogates.
        raise BadURL("is not UTF-8 text") from None
    if "\0" in unquote(text):
        raise BadURL("is wrong: it must not hold %00")
    scheme = re.split(r"[:+]", text, maxsplit=1)[0]
    if scheme in _WHAT_TO_PASTE:
        raise BadURL(_WHAT_TO_PASTE[scheme])
    text, listed = _without_host_list(text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise BadURL(
            "is not a URL: it should look like "
            "postgresql://user:password@host/database or sqlite:///tasks.db"
        ) from None
    match scheme:
        case "postgres" | "postgresql":
            return _postgresql(url, listed, target, text)
        case "sqlite":
            return DatabaseURL(_sqlite_url(url), {})
        case _:
            raise BadURL("is of a database that is not supported: use postgresql:// or sqlite://")


def _sqlite_url(url: URL) -> URL:
    if url.query:
        names = ", ".join(sorted(url.query))
        raise BadURL(f"has a parameter that is not supported: {names}; SQLite's URL takes none")
    if url.host or url.username or url.database in (None, "", ":memory:"):
        raise BadURL(
            "must name a file after three slashes, sqlite:///tasks.db, or after four if its path "
            "begins at the root, sqlite:////srv/tasks.db"
        )
    return url.set(drivername="sqlite+aiosqlite")


def place(url: URL) -> str:
    """A URL for the log, without its password and parameters."""
    hosts = url.query.get("host", "")
    if not isinstance(hosts, str) or "," not in hosts:
        return url.set(query={}).render_as_string()
    ports = cast(str, url.query["port"]).split(",")
    several = ",".join(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for host, port in zip(hosts.split(","), ports, strict=True)
    )
    shown = url.set(host=several, query={}).render_as_string()
    return shown.replace(f"[{several}]", several)  # SQLAlchemy takes the list for an IPv6 address.


def _without_host_list(url: str) -> tuple[str, str | None]:
    """The URL without its list of hosts, which SQLAlchemy can't parse, and that list, if any."""
    found = _HOST_LIST.match(url)
    return (url[: found.start(1)] + url[found.end(1) :], found[1]) if found else (url, None)


def _postgresql(url: URL, listed: str | None, target: str, text: str) -> DatabaseURL:
    query = _parameters(url)
    hosts, ports = _hosts(url, listed)
    if any(host.endswith(".cockroachlabs.cloud") for host in hosts):
        raise BadURL(_WHAT_TO_PASTE["cockroachdb"])
    if url.password and re.fullmatch(r"\[?your[-_ ]?password\]?|\*+", url.password, re.IGNORECASE):
        raise BadURL("has a placeholder in place of its password: put that there")
    options = _Options(query.get("options", ""))
    arguments: dict[str, Any] = {
        # TLS is optional only if all hosts are local.
        "ssl": tls_attempts(query, "prefer" if all(map(_is_local, hosts)) else "require"),
        "server_settings": {
            "application_name": query.get("application_name", "task-api"),
            **({"options": options.others} if options.others else {}),
        },
    }
    for name in _CACHE_SIZES:
        if name in query:
            arguments[name] = _number(name, query[name])
    if query.get("pgbouncer") == "true":  # Prisma's parameter for such a pooler.
        arguments.setdefault("statement_cache_size", 0)
    if "connect_timeout" in query:
        seconds = _number("connect_timeout", query["connect_timeout"])
        arguments["timeout"] = min(seconds or LONGEST_CONNECT_TIMEOUT, LONGEST_CONNECT_TIMEOUT)
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
    # As in libpq, parameters override the other parts of the URL.
    url = url.set(
        username=_literally("user", text) if "user" in query else url.username,
        password=_literally("password", text) if "password" in query else url.password,
        database=query.get("dbname", url.database),
    )
    return DatabaseURL(
        url.set(drivername="postgresql+asyncpg", query=where),
        arguments,
        _search_path(query, options),
        _shortest(options.statement_timeout, query.get("statement_timeout")),
        tuple(name for name in query if name in _IGNORED),
    )


# The hosts after user name and password, either of which may contain a slash, as in SQLAlchemy.
_HOST_LIST = re.compile(r"[\w+]+://(?:[^:/]*(?::[^@]*)?@)?+([^/?@]*,[^/?@]*)(?=[/?]|$)")
_LISTED_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+))(?::(.*))?")
_TARGETS = ("any", "primary", "standby", "prefer-standby", "read-write", "read-only")
# Sizes of the two caches of prepared statements. Old poolers need the driver's to be 0.
_CACHE_SIZES = ("statement_cache_size", "prepared_statement_cache_size")
_HONOURED = (
    *("sslmode", "ssl", "sslrootcert", "sslcert", "sslkey", "channel_binding"),
    *("host", "port", "user", "password", "dbname", "target_session_attrs"),
    *("application_name", "options", "search_path", "schema"),
    *("connect_timeout", "statement_timeout", "pgbouncer"),
    *_CACHE_SIZES,
)
# For other clients, or already true here.
_IGNORED = (
    *("connection_limit", "pool_timeout", "supa", "workaround", "uselibpqcompat"),
    *("client_encoding", "fallback_application_name", "gssencmode", "sslnegotiation"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
)
# Values of these two parameters that have no effect here.
_MEANINGLESS = {"gssencmode": ("disable", "prefer"), "sslnegotiation": ("postgres",)}
# libpq's other parameters.
_REFUSED = (
    *("gssdelegation", "gsslib", "hostaddr", "krbsrvname", "load_balance_hosts"),
    *("max_protocol_version", "min_protocol_version", "oauth_client_id"),
    *("oauth_client_secret", "oauth_issuer", "oauth_scope", "passfile", "replication"),
    *("require_auth", "requirepeer", "requiressl", "scram_client_key", "scram_server_key"),
    *("service", "servicefile", "ssl_max_protocol_version", "ssl_min_protocol_version"),
    *("sslcertmode", "sslcompression", "sslcrl", "sslcrldir", "sslkeylogfile", "sslpassword"),
    *("sslsni", "tcp_user_timeout"),
)


def _parameters(url: URL) -> dict[str, str]:
    """The URL's parameters. Raises BadURL for one that is unknown, not supported or repeated."""
    for name, value in url.query.items():
        if name in _HONOURED and not isinstance(value, str):
            raise BadURL(f"has the parameter {name} twice: remove one of them")
        if name in _REFUSED or value not in _MEANINGLESS.get(name, (value,)):
            raise BadURL(f"has the parameter {name}, which is not supported: remove it")
        if name not in _HONOURED + _IGNORED:
            # The message does not name it: it may be part of a password that is not encoded.
            raise BadURL(
                "has a parameter that is not supported; supported are "
                + ", ".join(_HONOURED + _IGNORED)
            )
    return cast(dict[str, str], dict(url.query))


def _literally(name: str, text: str) -> str:
    """The value of a parameter as libpq reads it: a plus sign is not a space."""
    return unquote(re.findall(rf"[?&]{name}=([^&]*)", text)[-1])


def _number(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise BadURL(f"is wrong: {name} must be a number")
    return int(value)


class _Options:
    """The parameter `options`, split into settings that this service applies itself and others.

    Poolers refuse `options`, or forget what it sets.
    """

    def __init__(self, text: str) -> None:
        self.search_path: str | None = None
        self.statement_timeout: str | None = None
        others = []
        for option in _OPTION.findall(text):
            name, _, value = re.sub(r"^(-c\s*|--)", "", option).partition("=")
            value = re.sub(r"\\(.)", r"\1", value)
            match name.replace("-", "_").lower():
                case "search_path":
                    self.search_path = value
                case "statement_timeout":
                    self.statement_timeout = value
                case _:
                    others.append(option)
        self.others = " ".join(others)


# A backslash escapes the next character, for example a space.
_OPTION = re.compile(r"(?:-c\s+)?(?:[^\s\\]|\\.)+")
_UNITS = {"us": 1e-6, "": 1e-3, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def _shortest(*timeouts: str | None) -> float | None:
    """The shortest of PostgreSQL's durations in seconds. 0 means no limit and is ignored."""
    seconds = []
    for timeout in timeouts:
        if timeout is not None:
            found = re.fullmatch(r"([0-9]{1,18})\s*(us|ms|s|min|h|d|)", timeout.strip())
            if found is None:
                raise BadURL("is wrong: statement_timeout must be milliseconds, or like 5s")
            seconds.append(int(found[1]) * _UNITS[found[2]])
    return min(filter(None, seconds), default=None)


def _search_path(query: dict[str, str], options: _Options) -> tuple[str, ...]:
    """The schemas of `search_path`, or of Prisma's `schema`."""
    paths = {
        name: _identifiers(path)
        for name, path in (
            ("search_path", query.get("search_path")),
            ("options", options.search_path),
        )
        if path is not None
    }
    if "schema" in query:
        paths["schema"] = (query["schema"],)
    if len(set(paths.values())) > 1:
        raise BadURL(f"is wrong: {' and '.join(paths)} name different schemas: remove one of them")
    return next(iter(paths.values()), ())


def _identifiers(text: str) -> tuple[str, ...]:
    """A list of SQL identifiers. Unquoted ones become lower case."""
    found = [_IDENTIFIER.fullmatch(part.strip()) for part in text.split(",")]
    if not all(found):
        raise BadURL("is wrong: search_path must be names of schemas, comma-separated")
    return tuple(match[1] or match[2].lower() for match in found if match)


_IDENTIFIER = re.compile(r'"([^"$,]+)"|([^\W\d][\w]*)')


def _hosts(url: URL, listed: str | None) -> tuple[list[str], list[int]]:
    """Names and ports of the hosts. The parameters host and port override the URL's own."""
    names, ports = [url.host or ""], ["" if url.port is None else str(url.port)]
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
    if not all(name.startswith("/") or _is_name(name) for name in names):
        raise BadURL("is wrong: it holds a name that no host can have")
    numbers = [int(p) if re.fullmatch("[0-9]{1,5}", p) else 0 for p in (p or "5432" for p in ports)]
    if not all(0 < number < 65536 for number in numbers):
        raise BadURL("is wrong: a port must be a number from 1 to 65535")
    return names, numbers


def _is_name(host: str) -> bool:
    try:
        host.encode("idna")  # As it is when the name is looked up.
    except UnicodeError:
        return False
    return True


def _is_local(host: str) -> bool:
    if not host or host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
