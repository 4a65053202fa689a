# [Task]: T098 [From]: specs/requirements.md
"""A real Better Auth as people configure it, and the service beside it, told the same."""

import json
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import httpx
import jwt
import pytest
from postgresql import free_port
from service import create_database, until

from .servers import Server, Stack, better_auth, task_api

SECRET = secrets.token_urlsafe(32)
SECRETS = f"2:{secrets.token_urlsafe(32)},1:{SECRET}"
OWN = {"jwt": {"issuer": "https://issuer.example", "audience": ["web", "tasks"]}}


class Configuration(NamedTuple):
    """What Better Auth's environment and plugin say, and what the service's settings say.

    `{site}` stands for where Better Auth is, `base` for the path of its API.
    """

    environment: dict[str, str]
    settings: dict[str, str]
    plugin: Mapping[str, object] = MappingProxyType({})
    base: str = "/api/auth"


URL = {"BETTER_AUTH_SECRET": SECRET, "BETTER_AUTH_URL": "{site}"}
ROTATED = {"BETTER_AUTH_SECRETS": SECRETS, "BETTER_AUTH_URL": "{site}"}
PATH = {"BETTER_AUTH_SECRET": SECRET, "BETTER_AUTH_URL": "{site}/auth"}
CONFIGURATIONS = {
    "a plain URL": Configuration(URL, URL),
    "a path in the URL": Configuration(PATH, PATH, base="/auth"),
    "several issuers and audiences": Configuration(
        URL,
        URL
        | {
            "BETTER_AUTH_ISSUER": "https://old.example, https://issuer.example",
            "BETTER_AUTH_AUDIENCE": "tasks,admin",
        },
        OWN,
    ),
    "an issuer without a URL": Configuration(
        URL,
        {
            "BETTER_AUTH_SECRET": SECRET,
            "BETTER_AUTH_JWKS_URL": "{site}/api/auth/jwks",
            "BETTER_AUTH_ISSUER": "https://issuer.example",
            "BETTER_AUTH_AUDIENCE": "web",
        },
        OWN,
    ),
    "several secrets": Configuration(ROTATED, ROTATED),
    # Refused, for want of the right place.
    "a path that the service is not told of": Configuration(PATH, URL, base="/auth"),
}


class Pair(NamedTuple):
    """Better Auth and the service, both running."""

    site: Server
    api: Server
    base: str

    def token(self) -> str:
        """Of somebody who has just signed up."""
        headers = {"Origin": self.site.url}
        base = f"{self.site.url}{self.base}"
        with httpx.Client(base_url=base, headers=headers, trust_env=False) as http:
            ada = {"name": "Ada", "email": "ada@example.com", "password": "correct horse"}
            http.post("/sign-up/email", json=ada).raise_for_status()
            token: str = http.get("/token").raise_for_status().json()["token"]
        return token

    def status(self, token: str) -> int:
        user = jwt.decode(token, options={"verify_signature": False})["sub"]
        bearer = {"Authorization": f"Bearer {token}"}
        url = f"{self.api.url}/api/{user}/tasks"
        return httpx.get(url, headers=bearer, trust_env=False).status_code


@pytest.fixture
def pair(request: pytest.FixtureRequest, stack: Stack, tmp_path: Path) -> Iterator[Pair]:
    configuration = CONFIGURATIONS[request.param]
    # In a thread, since Playwright keeps this one's event loop running.
    with ThreadPoolExecutor(1) as thread:
        database_url = thread.submit(create_database, stack.database).result()
    port = free_port()
    at = f"http://localhost:{port}"

    def written(variables: dict[str, str]) -> dict[str, str]:
        return {name: value.replace("{site}", at) for name, value in variables.items()}

    code = (Path(__file__).parent / "configured.js").read_text()
    site = better_auth(
        port,
        ["--input-type=module", "--eval", code],
        tmp_path,
        base=configuration.base,
        DATABASE_URL=database_url,
        JWT=json.dumps(dict(configuration.plugin)),
        **written(configuration.environment),
    )
    settings = written(configuration.settings)
    api = task_api(free_port(), at, tmp_path, DATABASE_URL=database_url, **settings)
    try:
        site.start()
        api.start()
        yield Pair(site, api, configuration.base)
    finally:
        api.stop()
        site.stop()


@pytest.mark.parametrize("pair", list(CONFIGURATIONS)[:-1], indirect=True)
def test_its_tokens_are_accepted(pair: Pair) -> None:
    assert pair.status(pair.token()) == 200
    bridged = httpx.get(f"{pair.site.url}/bridged", trust_env=False).text
    assert pair.status(bridged) == 200


@pytest.mark.parametrize("pair", list(CONFIGURATIONS)[-1:], indirect=True)
def test_keys_that_are_elsewhere_are_told_of(pair: Pair) -> None:
    assert pair.status(pair.token()) == 503
    told = f"{pair.site.url}/api/auth/jwks: ValueError: status 404: set BETTER_AUTH_JWKS_URL if"
    until(lambda: told in pair.api.log.read_text())
