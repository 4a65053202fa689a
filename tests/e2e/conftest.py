# [Task]: T031 [From]: specs/requirements.md
"""The suite's fixtures: a database, Better Auth, the service, a browser, and people who use it.

What the machine lacks is a failure, never a skip; install.sh brings it.
"""

import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from postgresql import PostgreSQL

from .servers import Server, better_auth, free_port, task_api

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from .person import Person

SCREENSHOTS = Path(__file__).parent / "screenshots"
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

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


class Stack(NamedTuple):
    """Everything but the browser. Who stops a part of it starts it again."""

    database: PostgreSQL
    site: Server
    api: Server
    secret: str


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    secret = secrets.token_urlsafe(32)
    logs = tmp_path_factory.mktemp("e2e")
    site_port, api_port = free_port(), free_port()
    # As root, the server runs as a user to whom every start of pytest closes its own folders.
    with tempfile.TemporaryDirectory() as folder:
        database = PostgreSQL(Path(folder))
        site = better_auth(
            port=site_port,
            api_url=f"http://127.0.0.1:{api_port}",
            database_url=database.url(),
            secret=secret,
            folder=logs,
        )
        api = task_api(
            port=api_port, origin=site.url, database_url=database.url(), secret=secret, folder=logs
        )
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
def logs_of_a_failure(request: pytest.FixtureRequest) -> Iterator[None]:
    """With a failed test comes what the servers said meanwhile."""
    if "stack" not in request.fixturenames:
        yield
        return
    stack: Stack = request.getfixturevalue("stack")
    servers = {"Better Auth": stack.site, "the service": stack.api}
    before = {name: len(server.log.read_text()) for name, server in servers.items()}
    yield
    if _failed in request.node.stash:
        for name, server in servers.items():
            said = server.log.read_text()[before[name] :]
            request.node.add_report_section("teardown", f"log of {name}", said)


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


@pytest.fixture(params=["EdDSA", "HS256"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of token that the page sends: Better Auth's own, or the bridge route's."""
    kind: str = request.param
    return kind


@pytest.fixture
def visitor(
    request: pytest.FixtureRequest, stack: Stack, browser: "Browser", kind: str
) -> Iterator[Callable[[str], "Person"]]:
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
    if _failed in request.node.stash:
        test = re.sub(r"\W+", "-", request.node.name).strip("-")
        SCREENSHOTS.mkdir(exist_ok=True)
        for person in people:
            person.page.screenshot(path=SCREENSHOTS / f"{test}-{person.name}.png", full_page=True)
    for person in people:
        person.page.context.close()
    assert [complaint for person in people for complaint in person.complaints] == []


@pytest.fixture
def ada(visitor: Callable[[str], "Person"]) -> "Person":
    """Somebody who has just signed up."""
    ada = visitor("Ada")
    ada.sign_up()
    return ada
