# [Task]: T002 [From]: specs/requirements.md
"""The service's settings, read from the environment and `.env`, then checked and frozen.

`get_settings()` reads them; an import reads nothing. kit/values.py parses single values and
kit/database/urls.py parses database URLs.
"""

import os
import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from kit.values import (
    PUBLISHED_SECRET,
    Unreadable,
    comma_separated,
    doubt_of_secret,
    networks,
    origin,
    read_variables,
    secret_versions,
)

MIN_SECRET_BYTES = 32

_HTTP_URL = re.compile(
    r"https?://(\[[0-9a-f:]+\]|[^\s/?#@:]+)(:\d{1,5})?(/[^\s?#]*)?", re.IGNORECASE
)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,*]+", re.IGNORECASE)
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")

# Settings of earlier releases and what replaced them.
REMOVED = {"HEADERS_TIMEOUT": "KEEP_ALIVE_TIMEOUT limits the wait for a request's head as well"}


class SettingsError(Exception):
    """A setting is missing or bad. The message names it and says what to do. It shows no value."""


class Settings(BaseModel):
    """Every setting with its unit and default; `.env.example` and docs/settings.md list them."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    # Any PostgreSQL URL, or sqlite:///file.db.
    database_url: SecretStr = SecretStr("sqlite:///tasks.db")
    # A streaming replica of that database. Lists and single reads go there.
    database_read_url: SecretStr | None = None
    # The secret shared with the frontend: at least 32 bytes of UTF-8, used exactly as written.
    # Required unless better_auth_url is set.
    better_auth_secret: SecretStr | None = None
    # The previous secret. It is accepted too while the secret is being changed.
    better_auth_secret_previous: SecretStr | None = None
    # Better Auth's own list of secrets: <version>:<secret>, comma-separated. All are accepted.
    better_auth_secrets: SecretStr | None = None
    # The URL of the Better Auth server, for tokens of its jwt() plugin. Its origin is their iss and
    # aud. Its path is Better Auth's base path; without a path, that is /api/auth.
    better_auth_url: str | None = None
    # These three override what follows from better_auth_url. Issuer and audience may be lists,
    # comma-separated.
    better_auth_jwks_url: str | None = None
    better_auth_issuer: str | None = None
    better_auth_audience: str | None = None
    # Exact browser origins, comma-separated in the environment.
    allowed_origins: frozenset[str] = frozenset({"http://localhost:3000"})
    # Tasks that one user may have; 0 means no limit.
    tasks_per_user: int = Field(default=10_000, ge=0)
    # Connections to PostgreSQL per process.
    database_pool_size: int = Field(default=10, ge=1, le=1000)
    # Seconds a request waits for a free connection.
    database_pool_timeout: float = Field(default=1.0, gt=0, le=60)
    # Seconds to connect to the database, TLS and log-in included.
    database_connect_timeout: float = Field(default=2.0, gt=0, le=60)
    # Seconds one statement may take.
    database_statement_timeout: float = Field(default=1.5, gt=0, le=60)
    # Whether /docs and /openapi.json are served.
    api_docs: bool = True
    # Address, port and number of worker processes of `python -m serve`.
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    # Open connections per worker process. Further ones wait to be accepted.
    max_connections: int = Field(default=4096, ge=1, le=100_000)
    # Seconds that `python -m serve` waits for the head of a request, and for the next request on an
    # idle connection. A proxy must close idle connections sooner: otherwise it may send a request
    # on a connection that the service is closing.
    keep_alive_timeout: int = Field(default=60, ge=1, le=60)
    # A path prefix that the proxy removes from each request.
    root_path: str = ""
    # Files of the certificate chain and its key (PKCS#8), for TLS without a proxy.
    tls_cert: str | None = None
    tls_key: str | None = None
    # Trusted proxies, whose X-Forwarded-For and X-Forwarded-Proto are used: addresses and networks,
    # comma-separated, or * for all. uvicorn reads this variable from the environment, too.
    forwarded_allow_ips: str = "127.0.0.1,::1"
    # The format of log lines. The default is text on a terminal and JSON otherwise.
    log_format: Literal["text", "json"] | None = None
    # The lowest level that is logged. Access lines are info; those of successful probes are debug.
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"

    # Settings of REMOVED that are still set.
    _removed: list[str] = PrivateAttr(default_factory=list)

    @field_validator("database_url", "database_read_url")
    @classmethod
    def _not_blank(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().strip():
            raise ValueError("is blank: set a database URL, or remove the line")
        return url

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _networks(cls, proxies: str) -> str:
        if proxies.strip() == "*":
            return "*"
        try:
            return networks(proxies)
        except ValueError:
            raise ValueError(
                "must be addresses like 10.0.0.7 or networks like 10.0.0.0/8, "
                "comma-separated, or * alone"
            ) from None

    @field_validator("root_path")
    @classmethod
    def _prefix(cls, path: str) -> str:
        path = path.strip().rstrip("/")
        if path and not _PREFIX.fullmatch(path):
            raise ValueError("must be a path like /tasks-api")
        return path

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        return host.strip().removeprefix("[").removesuffix("]")

    @field_validator("log_format", "log_level", mode="before")
    @classmethod
    def _in_lower_case(cls, value: object) -> object:
        value = value.strip().lower() if isinstance(value, str) else value
        return "warning" if value == "warn" else value

    @field_validator("better_auth_secret", "better_auth_secret_previous", "better_auth_secrets")
    @classmethod
    def _usable_secrets(cls, given: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if given is not None:
            text = given.get_secret_value()
            versioned = info.field_name == "better_auth_secrets"
            for secret in secret_versions(text) if versioned else [text]:
                _check_secret(secret)
        return given

    @field_validator("better_auth_url", "better_auth_jwks_url")
    @classmethod
    def _http_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        refusal = ValueError("must be a URL like https://app.example.com")
        if not _HTTP_URL.fullmatch(url):
            raise refusal
        try:
            urlsplit(url).port  # noqa: B018  # It checks the host and the port.
        except ValueError:
            raise refusal from None
        return url.rstrip("/")

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _exact_origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        origins = [part.rstrip("/") for part in comma_separated(value)]
        if not origins:
            raise ValueError("is blank: name at least one origin, or remove the line")
        accepted = set()
        for given in origins:
            if "*" in given:
                raise ValueError(
                    "must not hold *: requests carry credentials, so name each origin exactly"
                )
            if not _ORIGIN.fullmatch(given):
                raise ValueError(
                    "must be origins like https://app.example.com, comma-separated, without a path"
                )
            try:
                accepted.add(origin(given))
            except ValueError:
                raise ValueError("must be origins of hosts and ports that there can be") from None
        return frozenset(accepted)

    @model_validator(mode="after")
    def _previous_secret_is_another(self) -> Self:
        if self.better_auth_secret_previous is not None:
            if self.better_auth_secret is None:
                raise ValueError(
                    "BETTER_AUTH_SECRET_PREVIOUS is set, and BETTER_AUTH_SECRET is not: put the "
                    "secret of today there"
                )
            if self.better_auth_secret_previous == self.better_auth_secret:
                raise ValueError(
                    "BETTER_AUTH_SECRET_PREVIOUS is the same as BETTER_AUTH_SECRET: put the new "
                    "secret there, or remove the line"
                )
        return self

    @model_validator(mode="after")
    def _some_token_is_acceptable(self) -> Self:
        if self.better_auth_jwks_url and not (self.better_auth_url or self.better_auth_issuer):
            raise ValueError(
                "BETTER_AUTH_JWKS_URL is set, and whose tokens those keys verify is not: set "
                "BETTER_AUTH_URL, or BETTER_AUTH_ISSUER"
            )
        if not self.secrets and self.jwks_url is None:
            raise ValueError(
                "BETTER_AUTH_SECRET is missing: set it in the environment or in .env to the secret "
                "of the frontend (see .env.example), or set BETTER_AUTH_URL"
            )
        return self

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """All accepted secrets, the current one first."""
        return tuple(dict.fromkeys(secret.encode() for _, secret in self._named_secrets()))

    def _named_secrets(self) -> Iterator[tuple[str, str]]:
        if self.better_auth_secrets is not None:
            for secret in secret_versions(self.better_auth_secrets.get_secret_value()):
                yield "BETTER_AUTH_SECRETS", secret
        for name in ("better_auth_secret", "better_auth_secret_previous"):
            given: SecretStr | None = getattr(self, name)
            if given is not None:
                yield name.upper(), given.get_secret_value()

    @property
    def jwks_url(self) -> str | None:
        """The URL of Better Auth's published keys; None if the settings name none."""
        url = self.better_auth_url
        if self.better_auth_jwks_url or url is None:
            return self.better_auth_jwks_url
        # Better Auth does the same: a path in its URL replaces /api/auth.
        return f"{url}/jwks" if urlsplit(url).path else f"{url}/api/auth/jwks"

    @property
    def issuers(self) -> tuple[str, ...]:
        """Tokens signed with published keys must have one of these as `iss`."""
        return self.named_issuers or (origin(self.better_auth_url or ""),)

    @property
    def audiences(self) -> tuple[str, ...]:
        """Tokens signed with published keys must have at least one of these in `aud`."""
        return self.named_audiences or self.issuers

    @property
    def named_issuers(self) -> tuple[str, ...]:
        """BETTER_AUTH_ISSUER as a list. An HS256 token with an `iss` must match it, too."""
        return tuple(comma_separated(self.better_auth_issuer or ""))

    @property
    def named_audiences(self) -> tuple[str, ...]:
        """BETTER_AUTH_AUDIENCE as a list. An HS256 token with an `aud` must match it, too."""
        return tuple(comma_separated(self.better_auth_audience or ""))

    @property
    def warnings(self) -> list[str]:
        """Likely mistakes in the settings, one sentence each, without any value."""
        doubts = [
            f"{name} {doubt_of_secret(secret)}"
            for name, secret in self._named_secrets()
            if doubt_of_secret(secret)
        ]
        if (
            "database_pool_size" in self.model_fields_set
            and self.database_url.get_secret_value().strip().lower().startswith("sqlite")
        ):
            doubts.append("DATABASE_POOL_SIZE has no effect on SQLite, which has one connection")
        return doubts + [f"{name} has no effect: {REMOVED[name]}" for name in self._removed]


_FROM_FILES = (
    "BETTER_AUTH_SECRET",
    "BETTER_AUTH_SECRET_PREVIOUS",
    "BETTER_AUTH_SECRETS",
    "DATABASE_URL",
    "DATABASE_READ_URL",
)
_NAMES = frozenset({*(name.upper() for name in Settings.model_fields), "WEB_CONCURRENCY", *REMOVED})
_READ_NAMES = _NAMES.union(f"{name}_FILE" for name in _FROM_FILES)


def get_settings() -> Settings:
    """The settings, cached until the environment changes. Raises SettingsError."""
    # The intersection is faster than a look-up of each name, since most names are not set.
    return _read(tuple([(name, os.environ[name]) for name in _READ_NAMES.intersection(os.environ)]))


@lru_cache(maxsize=1)
def _read(_environment: tuple[tuple[str, str], ...]) -> Settings:
    try:
        variables = read_variables(
            _NAMES,
            from_files=_FROM_FILES,
            # An empty DATABASE_URL must not select the default, a local SQLite file.
            refused_when_empty=("DATABASE_URL", "ALLOWED_ORIGINS"),
            is_enough=_is_enough,
        )
        if "WEB_CONCURRENCY" in variables:
            variables.setdefault("WORKERS", variables["WEB_CONCURRENCY"])
        removed = [name for name in REMOVED if variables.pop(name, None)]
        settings = Settings.model_validate({name.lower(): v for name, v in variables.items()})
        settings._removed = removed
        return settings
    except ValidationError as error:
        raise SettingsError(". ".join(map(_sentence, error.errors()))) from None
    except Unreadable as error:
        raise SettingsError(str(error)) from None


def _is_enough(names: Collection[str]) -> bool:
    """Whether the service can start with these variables alone, without `.env`."""
    token_settings = {"BETTER_AUTH_SECRET", "BETTER_AUTH_SECRETS", "BETTER_AUTH_URL"}
    return "DATABASE_URL" in names and not token_settings.isdisjoint(names)


def _check_secret(secret: str) -> None:
    try:
        size = len(secret.encode())
    except UnicodeEncodeError:  # Python decodes invalid bytes of the environment as surrogates.
        raise ValueError("is not UTF-8 text") from None
    if not secret.strip():
        raise ValueError("is blank: set it to the secret of the frontend")
    if secret == PUBLISHED_SECRET:
        raise ValueError(
            "is the one that Better Auth takes where none is set, and that anybody can read: set "
            "another there and here; `openssl rand -base64 32` makes one"
        )
    if size < MIN_SECRET_BYTES:
        raise ValueError(
            f"is too short ({size} bytes of UTF-8): it needs at least {MIN_SECRET_BYTES}, "
            "and the same value as the frontend's; `openssl rand -base64 32` makes one"
        )


def _sentence(error: ErrorDetails) -> str:
    if error["type"] == "value_error":
        return " ".join([*(str(name).upper() for name in error["loc"]), str(error["ctx"]["error"])])
    return f"{str(error['loc'][0]).upper()} is not usable: {error['msg'].lower()}"
