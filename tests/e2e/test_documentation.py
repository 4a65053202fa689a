# [Task]: T063 [From]: specs/requirements.md
"""The page at `/docs`, in a browser that reaches no other host than the service."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, Route, expect
from support import sign

from .conftest import BROWSER_PATIENCE
from .servers import Stack


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    """It may neither complain nor ask another host."""
    own = urlsplit(stack.api.url).netloc
    complaints: list[str] = []

    def let_pass_or_note(route: Route, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("data", "blob") or parts.netloc == own:
            route.continue_()
        else:
            complaints.append(request.url)
            route.abort()

    context = browser.new_context()
    context.set_default_timeout(BROWSER_PATIENCE)
    context.route("**/*", let_pass_or_note)
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: complaints.append(message.text) if message.type == "error" else None,
    )
    yield page
    context.close()
    assert complaints == []


def test_page_asks_no_other_host_and_lists_tasks(page: Page, stack: Stack) -> None:
    page.goto(f"{stack.api.url}/docs")
    operation = page.locator("#operations-tasks-list_tasks")
    operation.locator(".opblock-summary-control").click()
    expect(operation.get_by_text("X-Next-Cursor").first).to_be_visible()

    page.get_by_role("button", name="Authorize").first.click()
    dialog = page.locator(".auth-container")
    dialog.locator("input").fill(sign("alice", secret=stack.secret))
    dialog.get_by_role("button", name="Apply credentials").click()
    page.locator(".dialog-ux").get_by_role("button", name="Close").last.click()

    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_placeholder("user_id").fill("alice")
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table .response").first
    expect(answer.locator(".response-col_status")).to_contain_text("200")
    expect(answer.locator(".response-col_description .microlight, pre").first).to_contain_text("[]")
