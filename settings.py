# [Task]: T002 [From]: specs/requirements.md
"""The service's settings: what the environment or `.env` may say, checked and frozen.

Reading happens in `get_settings()`, never at import. How values may be written is in kit/values.py,
and what a database URL means in kit/database/urls.py.
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

# Settings of earlier releases, and what has taken their place.
REMOVED = {"HEADERS_TIMEOUT": "KEEP_ALIVE_TIMEOUT limits the wait for a request's head as well"}


class SettingsError(Exception):
    """A setting is missing or bad. The message names it and the cure, and never shows its value."""


class Settings(BaseModel):
    """Every setting with its unit and default; `.env.example` and docs/settings.md list them."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    # Any PostgreSQL URL, or sqlite:///file.db.
    database_url: SecretStr = SecretStr("sqlite:///tasks.db")
    # A streaming replica of that database, for lists and single reads.
    database_read_url: SecretStr | None = None
    # The secret shared with the frontend, taken literally as UTF-8; at least 32 bytes.
    # Required unless better_auth_url is set.
    better_auth_secret: SecretStr | None = None
    # The secret before, which is accepted too while the frontend and the service change theirs.
    better_auth_secret_previous: SecretStr | None = None
    # Better Auth's own list for that, <version>:<secret>, comma-separated; all are accepted.
    better_auth_secrets: SecretStr | None = None
    # The Better Auth server's URL, for tokens of its jwt() plugin; its origin is their iss and aud.
    # Its path, if it has one, is Better Auth's base path; otherwise that is /api/auth.
    better_auth_url: str | None = None
    # In place of what follows from better_auth_url; the last two comma-separated.
    better_auth_jwks_url: str | None = None
    better_auth_issuer: str | None = None
    better_auth_audience: str | None = None
    # Exact browser origins, comma-separated in the environment.
    allowed_origins: frozenset[str] = frozenset({"http://localhost:3000"})
    # Tasks that one user may have; 0 for any number.
    tasks_per_user: int = Field(default=10_000, ge=0)
    # Connections of one process to PostgreSQL.
    database_pool_size: int = Field(default=10, ge=1, le=1000)
    # Seconds a request waits for a free connection.
    database_pool_timeout: float = Field(default=1.0, gt=0, le=60)
    # Seconds to connect to the database, TLS and log-in included.
    database_connect_timeout: float = Field(default=2.0, gt=0, le=60)
    # Seconds one statement may take.
    database_statement_timeout: float = Field(default=1.5, gt=0, le=60)
    # Whether /docs and /openapi.json are there.
    api_docs: bool = True
    # The address, the port and the number of processes of `python -m serve`.
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    # Open connections of one process of `python -m serve`; more wait to be accepted.
    max_connections: int = Field(default=4096, ge=1, le=100_000)
    # Seconds that `python -m serve` waits for a request's head, and for the next request on an
    # idle connection. A proxy in front must close idle connections sooner: whoever closes first may
    # meet a request on its way.
    keep_alive_timeout: int = Field(default=60, ge=1, le=60)
    # The prefix of all paths that a proxy has removed.
    root_path: str = ""
    # Files of a certificate chain and its key (PKCS#8), for TLS without a proxy.
    tls_cert: str | None = None
    tls_key: str | None = None
    # Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses and networks,
    # comma-separated, or * for all. uvicorn reads it from the environment as well.
    forwarded_allow_ips: str = "127.0.0.1,::1"
    # The form of log lines; by default text on a terminal and JSON otherwise.
    log_format: Literal["text", "json"] | None = None
    # The least of what is logged; the line of each request is info, that of a good probe debug.
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"

    # Names of earlier releases' settings that are still set.
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
        """Those that are accepted, the one of today first."""
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
        """Where Better Auth publishes its keys; None if none are asked for."""
        url = self.better_auth_url
        if self.better_auth_jwks_url or url is None:
            return self.better_auth_jwks_url
        # As Better Auth has it: a path in its URL stands in place of /api/auth.
        return f"{url}/jwks" if urlsplit(url).path else f"{url}/api/auth/jwks"

    @property
    def issuers(self) -> tuple[str, ...]:
        """The `iss` of tokens of published keys: any of these."""
        return self.named_issuers or (origin(self.better_auth_url or ""),)

    @property
    def audiences(self) -> tuple[str, ...]:
        """The `aud` of tokens of published keys: one of these at least."""
        return self.named_audiences or self.issuers

    @property
    def named_issuers(self) -> tuple[str, ...]:
        """Those of BETTER_AUTH_ISSUER, which HS256 tokens with an `iss` must be of as well."""
        return tuple(comma_separated(self.better_auth_issuer or ""))

    @property
    def named_audiences(self) -> tuple[str, ...]:
        """Those of BETTER_AUTH_AUDIENCE, which HS256 tokens with an `aud` must be for as well."""
        return tuple(comma_separated(self.better_auth_audience or ""))

    @property
    def warnings(self) -> list[str]:
        """What is likely to be a mistake, a sentence each, without any value."""
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
    """The settings of this environment, read once; a changed environment is read anew.

    Raises SettingsError.
    """
    # Not one by one: to look for what is not there takes longest.
    return _read(tuple([(name, os.environ[name]) for name in _READ_NAMES.intersection(os.environ)]))


@lru_cache(maxsize=1)
def _read(_environment: tuple[tuple[str, str], ...]) -> Settings:
    try:
        variables = read_variables(
            _NAMES,
            from_files=_FROM_FILES,
            # A lost secret must not become a throwaway database.
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
    """Whether nothing that a start needs can be missing for want of `.env`."""
    of_tokens = {"BETTER_AUTH_SECRET", "BETTER_AUTH_SECRETS", "BETTER_AUTH_URL"}
    return "DATABASE_URL" in names and not of_tokens.isdisjoint(names)


def _check_secret(secret: str) -> None:
    try:
        size = len(secret.encode())
    except UnicodeEncodeError:  # The environment's bytes, as lone surrogates.
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
