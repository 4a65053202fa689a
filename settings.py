# [Task]: T002 [From]: specs/requirements.md
"""The service's settings: what the environment or `.env` may say, checked and frozen.

Reading happens in `get_settings()`, never at import. What a database URL means is told in
kit/database/urls.py.
"""

import ipaddress
import os
import re
from functools import lru_cache
from typing import Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

MIN_SECRET_BYTES = 32

_HTTP_URL = re.compile(
    r"https?://(\[[0-9a-f:]+\]|[^\s/?#@:]+)(:\d{1,5})?(/[^\s?#]*)?", re.IGNORECASE
)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,*]+")


_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")

# Settings of earlier releases, and what has taken their place.
REMOVED = {"HEADERS_TIMEOUT": "KEEP_ALIVE_TIMEOUT limits the wait for a request's head as well"}


class SettingsError(Exception):
    """A setting is missing or bad. The message names it and the cure, and never shows its value."""


class Settings(BaseModel):
    """Every setting with its unit and default; `.env.example` and the README list the same."""

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
    # The Better Auth server's URL, for tokens of its jwt() plugin; its origin is their iss and aud.
    better_auth_url: str | None = None
    # In place of what follows from better_auth_url.
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
    # The least of what is logged; the line of each request is info.
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("database_url", "database_read_url")
    @classmethod
    def _not_blank(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().strip():
            raise ValueError("is blank: set a database URL, or remove the line")
        return url

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _addresses(cls, proxies: str) -> str:
        if proxies.strip() != "*":
            for proxy in proxies.split(","):
                try:
                    ipaddress.ip_network(proxy.strip())
                except ValueError:
                    raise ValueError(
                        "must be addresses like 10.0.0.7 or networks like 10.0.0.0/8, "
                        "comma-separated, or * alone"
                    ) from None
        return proxies.strip()

    @field_validator("root_path")
    @classmethod
    def _prefix(cls, path: str) -> str:
        path = path.strip().rstrip("/")
        if path and not _PREFIX.fullmatch(path):
            raise ValueError("must be a path like /tasks-api")
        return path

    @field_validator("tls_cert", "tls_key", mode="before")
    @classmethod
    def _file(cls, path: object) -> object:
        return path or None

    @field_validator("log_format", "log_level", mode="before")
    @classmethod
    def _in_lower_case(cls, value: object) -> object:
        return (value.strip().lower() or None) if isinstance(value, str) else value

    @field_validator("better_auth_secret_previous", mode="before")
    @classmethod
    def _none_if_blank(cls, secret: object) -> object:
        return secret or None

    @field_validator("better_auth_secret", "better_auth_secret_previous")
    @classmethod
    def _long_enough(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None:
            return None
        try:
            size = len(secret.get_secret_value().encode())
        except UnicodeEncodeError:  # The environment's bytes, as lone surrogates.
            raise ValueError("is not UTF-8 text") from None
        if size < MIN_SECRET_BYTES:
            raise ValueError(
                f"is too short ({size} bytes of UTF-8): it needs at least {MIN_SECRET_BYTES}, "
                "and the same value as the frontend's; `openssl rand -base64 32` makes one"
            )
        return secret

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
        origins = [part.strip().rstrip("/").lower() for part in value.split(",")]
        origins = [origin for origin in origins if origin]
        if not origins:
            raise ValueError("is blank: name at least one origin, or remove the line")
        for origin in origins:
            if "*" in origin:
                raise ValueError(
                    "must not hold *: requests carry credentials, so name each origin exactly"
                )
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    "must be origins like https://app.example.com, comma-separated, without a path"
                )
        return frozenset(origins)

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
        if self.better_auth_secret is None and self.better_auth_url is None:
            raise ValueError(
                "BETTER_AUTH_SECRET is missing: set it in the environment or in .env to the secret "
                "of the frontend (see .env.example), or set BETTER_AUTH_URL"
            )
        return self

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Those that are accepted, the one of today first."""
        both = (self.better_auth_secret, self.better_auth_secret_previous)
        return tuple(secret.get_secret_value().encode() for secret in both if secret)

    @property
    def jwks_url(self) -> str:
        """Where Better Auth publishes its keys."""
        return self.better_auth_jwks_url or f"{self.better_auth_url}/api/auth/jwks"

    @property
    def issuer(self) -> str:
        """The `iss` of Better Auth's own tokens."""
        return self.better_auth_issuer or _origin(self.better_auth_url or "")

    @property
    def audience(self) -> str:
        """The `aud` of Better Auth's own tokens."""
        return self.better_auth_audience or _origin(self.better_auth_url or "")


def get_settings() -> Settings:
    """The settings of this environment, read once; a changed environment is read anew.

    Raises SettingsError.
    """
    # Not one by one: to look for what is not there takes longest.
    return _read(tuple([(name, os.environ[name]) for name in _NAMES.intersection(os.environ)]))


_NAMES = frozenset(name.upper() for name in Settings.model_fields)


@lru_cache(maxsize=1)
def _read(_environment: tuple[tuple[str, str], ...]) -> Settings:
    try:
        return Settings.model_validate({n.lower(): v for n, v in _written().items()})
    except ValidationError as error:
        raise SettingsError(". ".join(map(_sentence, error.errors()))) from None
    except UnicodeDecodeError:
        raise SettingsError(".env is not UTF-8 text: save it as UTF-8") from None


def _written() -> dict[str, str]:
    # In `.env` a `$` stands for itself: secrets are literal.
    written = {**dotenv_values(".env", interpolate=False), **os.environ}
    return {name: value for name, value in written.items() if value is not None}


def removed_settings() -> list[str]:
    """A sentence about each setting of an earlier release that is still set."""
    return [f"{name} has no effect: {why}" for name, why in REMOVED.items() if _written().get(name)]


def _origin(url: str) -> str:
    """As a browser writes it: lower case, without path, trailing slash and default port."""
    parts = urlsplit(url.lower())
    default_port = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.removesuffix(default_port)}"


def _sentence(error: ErrorDetails) -> str:
    if error["type"] == "value_error":
        return " ".join([*(str(name).upper() for name in error["loc"]), str(error["ctx"]["error"])])
    return f"{str(error['loc'][0]).upper()} is not usable: {error['msg'].lower()}"
