# [Task]: T031 [From]: specs/requirements.md
"""The suite's fixtures: a database, Better Auth, the service, a browser, and people who use it.

What the machine lacks is a failure, never a skip; install.sh brings it.
"""

import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from postgresql import PostgreSQL, free_port

from .servers import Stack, better_auth, task_api

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from .person import Person

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Milliseconds: generous, since a busy machine is no bug.
BROWSER_PATIENCE = 20_000


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    secret = secrets.token_urlsafe(32)
    logs = tmp_path_factory.mktemp("e2e")
    site_port, api_port = free_port(), free_port()
    # As root, the server runs as a user to whom every start of pytest closes its own folders.
    with tempfile.TemporaryDirectory() as folder:
        database = PostgreSQL(Path(folder))
        shared = {"DATABASE_URL": database.url(), "BETTER_AUTH_SECRET": secret}
        site = better_auth(
            site_port, ["server.js"], logs, API_URL=f"http://127.0.0.1:{api_port}", **shared
        )
        api = task_api(api_port, site.url, logs, BETTER_AUTH_URL=site.url, **shared)
        database.start()
        try:
            site.start()
            api.start()
            yield Stack(database, site, api, secret)
        finally:
            api.stop()
            site.stop()
            database.stop("immediate")


@pytest.fixture(autouse=True)
def logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """With a failed test, pytest shows what the servers said meanwhile."""
    if "stack" not in request.fixturenames:
        yield
        return
    stack: Stack = request.getfixturevalue("stack")
    logs = [server.log for server in (stack.site, stack.api)]
    before = [len(log.read_text()) for log in logs]
    yield
    for log, length in zip(logs, before, strict=True):
        sys.stdout.write(f"{log.name}\n{log.read_text()[length:]}")


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import expect, sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(f"None of {', '.join(BROWSERS)} is on PATH: run tests/e2e/install.sh")
    expect.set_options(timeout=BROWSER_PATIENCE)
    with sync_playwright() as playwright:
        # Named, so that Playwright never looks for a browser of its own.
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def kind() -> str:
    """The kind of token that the page sends: here Better Auth's own."""
    return "EdDSA"


@pytest.fixture
def visitor(stack: Stack, browser: "Browser", kind: str) -> Iterator[Callable[[str], "Person"]]:
    """Makes somebody, with a browser of their own, who has no account yet.

    At the end, nobody's browser may have complained: of CORS, of a script, of the page's policy.
    """
    from .person import Person

    people: list[Person] = []

    def make(name: str) -> Person:
        context = browser.new_context(locale="en-GB")
        context.set_default_timeout(BROWSER_PATIENCE)
        person = Person(context.new_page(), stack.site.url, stack.api.url, kind, name)
        people.append(person)
        return person

    yield make
    for person in people:
        person.page.context.close()
    assert [complaint for person in people for complaint in person.complaints] == []


@pytest.fixture
def ada(visitor: Callable[[str], "Person"]) -> "Person":
    """Somebody who has just signed up."""
    ada = visitor("Ada")
    ada.sign_up()
    return ada
