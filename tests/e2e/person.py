# [Task]: T031 [From]: specs/requirements.md
"""Somebody who uses the example's page, as a person or a screen reader finds their way on it."""

import base64
import json
import re
import secrets

import pytest
from playwright.sync_api import ConsoleMessage, Locator, Page, Request, Response, expect

# Where the page gets each kind of token.
TOKEN_ROUTES = {"EdDSA": "/api/auth/token", "HS256": "/api/token"}
# Better Auth's own, and the bridge route's.
with_each_kind = pytest.mark.parametrize("kind", TOKEN_ROUTES)


class Person:
    """A name, an address that nobody else has, and a browser of one's own."""

    def __init__(self, page: Page, site_url: str, api_url: str, kind: str, name: str) -> None:
        self.page = page
        self.kind = kind
        self.name = name
        self.email = f"{name.lower()}-{secrets.token_hex(4)}@example.com"
        self.password = secrets.token_urlsafe(12)
        # What the page's scripts said that they should not have.
        self.complaints: list[str] = []
        # The method and status of each answer of the API.
        self.answers: list[tuple[str, int]] = []
        self.tokens_fetched = 0
        self.site_url = site_url
        self.api_url = api_url
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._on_request)
        page.on("response", self._on_response)

    # What the page shows.

    @property
    def message(self) -> Locator:
        return self.page.get_by_role("status")

    @property
    def tasks(self) -> Locator:
        return self.page.get_by_role("region", name="Your tasks").get_by_role("listitem")

    def task(self, title: str) -> Locator:
        return self.tasks.filter(has=self.page.get_by_role("checkbox", name=title, exact=True))

    def sees(self, *titles: str) -> None:
        """The list is there and holds these titles, in this order, and no others."""
        expect(self.page.get_by_role("heading", name="Your tasks")).to_be_visible()
        expect(self.tasks.locator(".title")).to_have_text(list(titles))
        expect(self.page.get_by_text("Nothing to do yet")).to_be_visible(visible=not titles)

    def sees_sign_in(self) -> None:
        expect(self.page.get_by_role("heading", name="Sign in")).to_be_visible()
        expect(self.page.get_by_role("heading", name="Your tasks")).to_be_hidden()
        expect(self.page.get_by_role("listitem")).to_have_count(0)

    # What a person does.

    def open(self) -> None:
        self.page.goto(self.site_url)
        self.page.get_by_label(self.kind).check()

    def sign_up(self) -> None:
        self.open()
        self.page.get_by_role("button", name="Create an account").click()
        form = self.page.get_by_role("region", name="Create an account")
        form.get_by_label("Name").fill(self.name)
        form.get_by_label("Email").fill(self.email)
        form.get_by_label("Password").fill(self.password)
        form.get_by_role("button", name="Create account").click()
        expect(self.message).to_have_text(f"Welcome, {self.name}.")

    def sign_in(self) -> None:
        form = self.page.get_by_role("region", name="Sign in")
        form.get_by_label("Email").fill(self.email)
        form.get_by_label("Password").fill(self.password)
        form.get_by_role("button", name="Sign in").click()

    def sign_out(self) -> None:
        self.page.get_by_role("button", name="Sign out").click()
        expect(self.message).to_have_text("You are signed out.")

    def ask_to_add(self, title: str, description: str = "") -> None:
        form = self.page.get_by_role("region", name="Add a task")
        form.get_by_label("Title").fill(title)
        form.get_by_label("Description").fill(description)
        form.get_by_role("button", name="Add task").click()

    def add(self, title: str, description: str = "") -> None:
        self.ask_to_add(title, description)
        expect(self.message).to_have_text(f"Added “{title}”.")

    def open_editor(self, title: str) -> Locator:
        self.page.get_by_role("button", name=f"Edit {title}").click()
        return self.page.get_by_role("form", name="Edit task")

    def edit(self, title: str, *, new_title: str, description: str) -> None:
        form = self.open_editor(title)
        form.get_by_label("Title").fill(new_title)
        form.get_by_label("Description").fill(description)
        form.get_by_role("button", name="Save").click()
        expect(self.message).to_have_text(f"Saved “{new_title}”.")

    def tick(self, title: str) -> None:
        self.page.get_by_role("checkbox", name=title).click()

    def delete(self, title: str) -> None:
        self.agree()
        self.page.get_by_role("button", name=f"Delete {title}").click()
        expect(self.message).to_have_text(f"Deleted “{title}”.")

    def agree(self) -> None:
        """Answer the browser's next question with yes."""
        self.page.once("dialog", lambda dialog: dialog.accept())

    def hand_out(self, token: str, *, always: bool = False) -> None:
        """From the next page load on, the first token that the page gets is this one, or each is.

        The page's own fetch is replaced, since a route of Playwright's would answer preflights
        itself, and CORS is to stay real.
        """
        route = TOKEN_ROUTES[self.kind]
        script = """([route, token, always]) => {
            const realFetch = window.fetch;
            let handedOut = false;
            window.fetch = (url, options) => {
                if (url !== route || (handedOut && !always)) return realFetch(url, options);
                handedOut = true;
                return Promise.resolve(Response.json({ token }));
            };
        }"""
        self.page.add_init_script(f"({script})({json.dumps([route, token, always])})")

    def lose_answer(self, method: str) -> None:
        """The next request with this method is done, but the page never learns of it."""
        self._replace_fetch("throw new TypeError('Failed to fetch');", method)

    def hold_answer(self, method: str) -> None:
        """From the next page load on, the first such answer waits for `release_answer`."""
        wait = "await new Promise((resolve) => (window.release = resolve));"
        self._replace_fetch(wait, method, at_load=True)

    def release_answer(self) -> None:
        self.page.evaluate("window.release()")

    def _replace_fetch(self, then: str, method: str, *, at_load: bool = False) -> None:
        script = f"""(() => {{
            const realFetch = window.fetch;
            let done = false;
            window.fetch = async (url, options) => {{
                const response = await realFetch(url, options);
                if (done || options?.method !== "{method}") return response;
                done = true;
                {then}
                return response;
            }};
        }})()"""
        if at_load:
            self.page.add_init_script(script)
        else:
            self.page.evaluate(script)

    def second_tab(self) -> "Person":
        """The same person, in another tab of the same browser."""
        tab = Person(
            self.page.context.new_page(), self.site_url, self.api_url, self.kind, self.name
        )
        tab.open()
        return tab

    # What the browser reports.

    def _on_console(self, message: ConsoleMessage) -> None:
        # The browser itself notes each answer of 400 or more, and each that did not come.
        if message.type in ("error", "warning") and not re.match(
            r"Failed to load resource: (the server responded|net::)", message.text
        ):
            self.complaints.append(message.text)

    def _on_request(self, request: Request) -> None:
        if request.url.startswith(self.api_url):
            alg = algorithm(request.headers["authorization"].removeprefix("Bearer "))
            if alg != self.kind:
                self.complaints.append(f"a token of {alg} was sent for {self.kind}")

    def _on_response(self, response: Response) -> None:
        if response.url.startswith(self.api_url):
            self.answers.append((response.request.method, response.status))
        elif response.url == self.site_url + TOKEN_ROUTES[self.kind]:
            self.tokens_fetched += 1


def algorithm(token: str) -> str:
    """The `alg` in a JWT's header."""
    header = token.partition(".")[0]
    alg: str = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["alg"]
    return alg
