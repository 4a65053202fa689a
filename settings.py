# [Task]: T002 [From]: specs/requirements.md
"""The service's settings: what the environment or `.env` may say, checked and frozen.

Reading happens in `get_settings()`, never at import. What a database URL means is told in db.py.
"""

import os
import re
from functools import lru_cache
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIN_SECRET_BYTES = 32

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,*]+")


class SettingsError(Exception):
    """A setting is missing or bad. The message names it and the cure, and never shows its value."""


class Settings(BaseSettings):
    """Every setting with its unit and default; `.env.example` and the README list the same."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    # Any PostgreSQL URL, or sqlite:///file.db.
    database_url: SecretStr = SecretStr("sqlite:///tasks.db")
    # The secret shared with the frontend, taken literally as UTF-8; at least 32 bytes.
    better_auth_secret: SecretStr
    # Exact browser origins, comma-separated in the environment.
    allowed_origins: Annotated[frozenset[str], NoDecode] = frozenset({"http://localhost:3000"})
    # Connections of one process to PostgreSQL.
    database_pool_size: int = Field(default=10, ge=1, le=1000)
    # Seconds a request waits for a free connection.
    database_pool_timeout: float = Field(default=1.0, gt=0, le=60)
    # Seconds to connect to the database, TLS and log-in included.
    database_connect_timeout: float = Field(default=2.0, gt=0, le=60)
    # Seconds one statement may take.
    database_statement_timeout: float = Field(default=1.5, gt=0, le=60)

    @field_validator("database_url")
    @classmethod
    def _not_blank(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().strip():
            raise ValueError("is blank: set a database URL, or remove the line for SQLite")
        return url

    @field_validator("better_auth_secret")
    @classmethod
    def _strong(cls, secret: SecretStr) -> SecretStr:
        # Bytes of the environment that are not UTF-8 arrive as lone surrogates.
        size = len(secret.get_secret_value().encode("utf-8", "ignore"))
        if size < MIN_SECRET_BYTES:
            raise ValueError(
                f"is too short ({size} bytes of UTF-8): it needs at least {MIN_SECRET_BYTES}, "
                "and the same value as the frontend's; `openssl rand -base64 32` makes one"
            )
        return secret

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


def get_settings() -> Settings:
    """The settings of this environment, read once; a changed environment is read anew.

    Raises SettingsError.
    """
    return _read(tuple(map(os.environ.get, _NAMES)))


_NAMES = tuple(name.upper() for name in Settings.model_fields)


@lru_cache(maxsize=1)
def _read(_environment: tuple[str | None, ...]) -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(". ".join(map(_sentence, error.errors()))) from None
    except UnicodeDecodeError:
        raise SettingsError(".env is not UTF-8 text: save it as UTF-8") from None


def _sentence(error: ErrorDetails) -> str:
    name = str(error["loc"][0]).upper()
    if error["type"] == "missing":
        return f"{name} is missing: set it in the environment or in .env (see .env.example)"
    if error["type"] == "value_error":
        return f"{name} {error['ctx']['error']}"
    return f"{name} is not usable: {error['msg'].lower()}"
