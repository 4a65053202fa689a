# [Task]: T031 [From]: specs/requirements.md
"""What a user does, done in a real browser, with each kind of token, over real CORS."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from playwright.sync_api import Browser, expect
from support import sign

from .person import Person, with_each_kind
from .servers import Stack, down, foreign_tokens

UNREACHABLE = "be reached. Check your connection, then try again."
UNAVAILABLE = "The task service is temporarily unavailable."
REFUSED = "The task service refuses this kind of token."


class TestTasks:
    @with_each_kind
    def test_are_added_edited_completed_and_deleted(self, ada: Person) -> None:
        ada.sees()
        ada.add("Buy milk", "Two litres")
        ada.add("Call Charles")
        ada.sees("Call Charles", "Buy milk")
        expect(ada.task("Buy milk")).to_contain_text("Two litres")

        ada.edit("Buy milk", new_title="Buy oat milk", description="One litre,\nunsweetened")
        ada.sees("Call Charles", "Buy oat milk")
        expect(ada.task("Buy oat milk")).to_contain_text("One litre,\nunsweetened")

        ada.tick("Buy oat milk")
        expect(ada.message).to_have_text("Completed “Buy oat milk”.")
        expect(ada.page.get_by_text("1 of 2 done")).to_be_visible()
        ada.tick("Buy oat milk")
        expect(ada.message).to_have_text("“Buy oat milk” is open again.")
        ada.tick("Call Charles")
        expect(ada.message).to_have_text("Completed “Call Charles”.")

        ada.delete("Buy oat milk")
        ada.sees("Call Charles")
        expect(ada.page.get_by_text("1 of 1 done")).to_be_visible()
        ada.delete("Call Charles")
        ada.sees()
        assert ada.tokens_fetched == 1

    def test_are_still_there_after_a_reload(self, ada: Person) -> None:
        ada.add("Read")
        ada.add("Write", "Note <b>G</b> & more")
        ada.tick("Read")
        expect(ada.message).to_have_text("Completed “Read”.")
        ada.page.reload()
        ada.sees("Write", "Read")
        expect(ada.task("Write")).to_contain_text("Note <b>G</b> & more")
        expect(ada.task("Read").get_by_role("checkbox")).to_be_checked()
        expect(ada.task("Write").get_by_role("checkbox")).not_to_be_checked()

    def test_need_no_mouse(self, ada: Person) -> None:
        keyboard = ada.page.keyboard
        # Signing up has put the focus on the title.
        keyboard.type("Buy milk")
        keyboard.press("Enter")
        ada.sees("Buy milk")
        ada.task("Buy milk").get_by_role("checkbox").focus()
        keyboard.press("Space")
        expect(ada.message).to_have_text("Completed “Buy milk”.")
        keyboard.press("Tab")
        keyboard.press("Enter")  # Edit
        keyboard.type("Buy nothing")
        keyboard.press("Escape")
        ada.sees("Buy milk")
        keyboard.press("Enter")  # Edit, where the focus has returned to
        keyboard.type("Buy tea")
        keyboard.press("Enter")
        ada.sees("Buy tea")
        keyboard.press("Tab")
        ada.agree()
        keyboard.press("Enter")  # Delete
        ada.sees()

    def test_of_one_user_are_hidden_from_another(
        self, ada: Person, visitor: Callable[[str], Person]
    ) -> None:
        ada.add("Ada's own")
        bob = visitor("Bob")
        bob.sign_up()
        bob.sees()
        bob.add("Bob's own")
        bob.page.reload()
        bob.sees("Bob's own")
        ada.page.reload()
        ada.sees("Ada's own")

    def test_of_one_user_are_hidden_from_the_next_at_the_same_browser(self, ada: Person) -> None:
        ada.add("Ada's own")
        ada.sign_out()
        bob = Person(ada.page, ada.site_url, ada.api_url, ada.kind, "Bob")
        bob.sign_up()
        bob.sees()
        assert bob.complaints == []


class TestSession:
    @with_each_kind
    def test_ends_with_signing_out(self, ada: Person) -> None:
        ada.add("Read")
        ada.sign_out()
        ada.sees_sign_in()
        ada.page.reload()
        ada.sees_sign_in()
        ada.sign_in()
        ada.sees("Read")

    def test_that_ended_elsewhere_asks_to_sign_in(self, ada: Person) -> None:
        ada.page.context.clear_cookies()
        ada.page.clock.set_fixed_time(an_hour_from_now())
        ada.ask_to_add("Too late")
        expect(ada.message).to_have_text("Your session has ended. Please sign in again.")
        ada.sees_sign_in()

    def test_does_not_begin_with_a_wrong_password(self, ada: Person) -> None:
        ada.sign_out()
        ada.password = "not hers"
        ada.sign_in()
        expect(ada.message).to_have_text("Invalid email or password.")
        ada.sees_sign_in()

    def test_and_all_tasks_end_with_the_account(self, ada: Person) -> None:
        ada.add("Read")
        ada.agree()
        ada.page.get_by_role("button", name="Delete account").click()
        expect(ada.message).to_have_text("Your account and your tasks are deleted.")
        ada.page.reload()
        ada.sign_in()
        expect(ada.message).to_have_text("Invalid email or password.")


def an_hour_from_now() -> datetime:
    return datetime.now().astimezone() + timedelta(hours=1)


@with_each_kind
class TestTokens:
    def test_are_replaced_when_they_expire(self, ada: Person) -> None:
        ada.add("Before")
        assert ada.tokens_fetched == 1
        ada.page.clock.set_fixed_time(an_hour_from_now())
        ada.add("After")
        ada.sees("After", "Before")
        assert ada.tokens_fetched == 2
        assert [status for _, status in ada.answers] == [200, 201, 201]

    def test_are_replaced_when_the_service_finds_them_expired(
        self, ada: Person, stack: Stack
    ) -> None:
        ada.add("Before")
        ada.hand_out(expired_token(ada, stack))
        ada.answers.clear()
        ada.tokens_fetched = 0
        ada.page.reload()
        ada.sees("Before")
        expect(ada.message).to_be_empty()
        assert ada.answers == [("GET", 401), ("GET", 200)]
        assert ada.tokens_fetched == 1

    def test_are_replaced_once_and_not_for_ever(self, ada: Person, stack: Stack) -> None:
        ada.hand_out(expired_token(ada, stack), always=True)
        ada.answers.clear()
        ada.page.reload()
        expect(ada.message).to_contain_text(REFUSED)
        assert ada.answers == [("GET", 401), ("GET", 401)]


def expired_token(person: Person, stack: Stack) -> str:
    """A token of the person's kind in perfect order, but for its age."""
    session = person.page.request.get(f"{stack.site.url}/api/auth/get-session").json()
    if person.kind == "HS256":
        now = int(time.time())
        return sign(session["user"]["id"], secret=stack.secret, iat=now - 960, exp=now - 60)
    return foreign_tokens(stack, person.email, person.password)["expired"]


class TestOutages:
    """Each is told in plain words, loses nothing, and ends without a new page."""

    def test_of_the_service_lose_nothing(self, ada: Person, stack: Stack) -> None:
        ada.add("Before")
        with down(stack.api):
            ada.ask_to_add("During", "An outage")
            expect(ada.message).to_contain_text(UNREACHABLE)
            ada.tick("Before")
            expect(ada.task("Before").get_by_role("checkbox")).not_to_be_checked()
            expect(ada.message).to_contain_text(UNREACHABLE)
            ada.sees("Before")
        ada.page.get_by_role("button", name="Add task").click()
        expect(ada.message).to_have_text("Added “During”.")
        ada.sees("During", "Before")
        expect(ada.task("During")).to_contain_text("An outage")

    def test_of_the_service_may_be_met_at_the_start(self, ada: Person, stack: Stack) -> None:
        ada.add("Before")
        with down(stack.api):
            ada.page.reload()
            expect(ada.message).to_contain_text(UNREACHABLE)
            # Neither is there a list, nor an empty one.
            expect(ada.page.get_by_role("heading", name="Your tasks")).to_be_hidden()
        ada.page.get_by_role("button", name="Try again").click()
        ada.sees("Before")
        expect(ada.message).to_be_empty()

    def test_of_the_database_lose_nothing(self, ada: Person, stack: Stack) -> None:
        ada.add("Before")
        with down(stack.database):
            ada.ask_to_add("During")
            expect(ada.message).to_contain_text(UNAVAILABLE)
            # The browser let the page read the answer, which has its CORS headers.
            assert ada.answers[-1] == ("POST", 503)
            assert ada.complaints == []
            ada.tick("Before")
            expect(ada.task("Before").get_by_role("checkbox")).not_to_be_checked()
            assert ada.answers[-1] == ("PATCH", 503)
        ada.page.get_by_role("button", name="Add task").click()
        expect(ada.message).to_have_text("Added “During”.")
        ada.sees("During", "Before")

    def test_of_the_database_may_be_met_at_the_start(self, ada: Person, stack: Stack) -> None:
        ada.add("Before")
        with down(stack.database):
            ada.page.reload()
            expect(ada.message).to_contain_text("Signing in is temporarily unavailable.")
            expect(ada.page.get_by_role("heading")).to_have_text(["Tasks"])
        ada.page.get_by_role("button", name="Try again").click()
        ada.sees("Before")


class TestLostAndLateAnswers:
    """What the service guarantees, used by the page: nothing is made twice, nothing is lost."""

    def test_a_task_whose_answer_was_lost_is_added_once(self, ada: Person) -> None:
        ada.lose_answer("POST")
        ada.ask_to_add("Buy milk", "Two litres")
        expect(ada.message).to_contain_text(UNREACHABLE)
        ada.page.get_by_role("button", name="Add task").click()
        expect(ada.message).to_have_text("Added “Buy milk”.")
        ada.sees("Buy milk")
        ada.add("Buy milk")
        ada.page.reload()
        ada.sees("Buy milk", "Buy milk")

    def test_a_task_that_was_rewritten_after_its_answer_was_lost_is_asked_about(
        self, ada: Person
    ) -> None:
        ada.lose_answer("POST")
        ada.ask_to_add("Buy milk")
        expect(ada.message).to_contain_text(UNREACHABLE)
        ada.ask_to_add("Buy oat milk")
        expect(ada.message).to_contain_text("The task is in the list as you first sent it.")
        ada.sees("Buy milk")
        ada.page.get_by_role("button", name="Add task").click()
        ada.sees("Buy oat milk", "Buy milk")

    @pytest.mark.parametrize("method", ["GET", "PUT"])
    def test_a_change_whose_answer_was_lost_is_saved_once_more(
        self, ada: Person, method: str
    ) -> None:
        ada.add("Buy milk")
        form = ada.open_editor("Buy milk")
        form.get_by_label("Title").fill("Buy oats ")
        ada.lose_answer(method)
        form.get_by_role("button", name="Save").click()
        expect(ada.message).to_contain_text(UNREACHABLE)
        form.get_by_role("button", name="Save").click()
        expect(ada.message).to_have_text("Saved “Buy oats”.")
        ada.sees("Buy oats")

    @pytest.mark.parametrize("method", ["PATCH", "DELETE"])
    def test_what_was_done_without_an_answer_is_done_again(self, ada: Person, method: str) -> None:
        ada.add("Buy milk")
        ada.lose_answer(method)
        for message in (UNREACHABLE, "“Buy milk”."):
            if method == "PATCH":
                ada.tick("Buy milk")
            else:
                ada.agree()
                ada.page.get_by_role("button", name="Delete Buy milk").click()
            expect(ada.message).to_contain_text(message)
        if method == "DELETE":
            ada.sees()
        else:
            expect(ada.task("Buy milk").get_by_role("checkbox")).to_be_checked()

    def test_a_late_list_takes_nothing_away(self, ada: Person) -> None:
        ada.add("Before")
        ada.hold_answer("GET")
        ada.page.reload()
        ada.add("After")
        ada.sees("After", "Before")
        ada.release_answer()
        ada.delete("Before")
        ada.sees("After")


class TestTwoTabs:
    @pytest.fixture
    def tab(self, ada: Person) -> Person:
        """Has the same task in its list."""
        ada.add("Buy milk", "Two litres")
        return ada.second_tab()

    def test_that_change_different_fields_lose_neither(self, ada: Person, tab: Person) -> None:
        form = ada.open_editor("Buy milk")
        tab.edit("Buy milk", new_title="Buy milk", description="One litre")
        tab.tick("Buy milk")
        expect(tab.message).to_have_text("Completed “Buy milk”.")
        form.get_by_label("Title").fill("Buy oat milk")
        form.get_by_role("button", name="Save").click()
        expect(ada.message).to_have_text("Saved “Buy oat milk”.")
        expect(ada.task("Buy oat milk")).to_contain_text("One litre")
        expect(ada.task("Buy oat milk").get_by_role("checkbox")).to_be_checked()

    @pytest.mark.parametrize(
        ("choice", "kept"), [("Save mine", "Buy rice"), ("Use this version", "Buy oats")]
    )
    def test_that_change_the_same_field_get_a_choice(
        self, ada: Person, tab: Person, choice: str, kept: str
    ) -> None:
        form = ada.open_editor("Buy milk")
        tab.edit("Buy milk", new_title="Buy oats", description="One litre")
        form.get_by_label("Title").fill("Buy rice")
        form.get_by_role("button", name="Save").click()
        expect(ada.message).to_contain_text("Choose which version to keep.")
        expect(form.get_by_text("Buy oats")).to_be_visible()
        form.get_by_role("button", name=choice).click()
        ada.sees(kept)
        ada.page.reload()
        ada.sees(kept)
        expect(ada.task(kept)).to_contain_text("One litre")

    def test_drop_what_the_other_has_deleted(self, ada: Person, tab: Person) -> None:
        ada.add("Buy oats")
        tab.page.reload()
        for title in ("Buy milk", "Buy oats"):
            tab.delete(title)
        ada.tick("Buy oats")
        expect(ada.message).to_have_text("This task was deleted elsewhere.")
        ada.sees("Buy milk")
        form = ada.open_editor("Buy milk")
        form.get_by_label("Title").fill("Buy rice")
        form.get_by_role("button", name="Save").click()
        expect(ada.message).to_contain_text("What you typed is in the form above.")
        ada.sees()
        ada.page.get_by_role("button", name="Add task").click()
        ada.sees("Buy rice")


class TestCORS:
    def test_is_real(self, browser: Browser, stack: Stack) -> None:
        page = browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        health = f"{stack.api.url}/health"
        reach = "url => fetch(url).then(response => response.status, () => 'no answer')"
        page.goto(f"{stack.site.url}/style.css")
        assert page.evaluate(reach, health) == 200
        page.goto(f"{stack.api.url.replace('127.0.0.1', 'localhost')}/health")
        assert page.evaluate(reach, health) == "no answer"
        assert any("blocked by CORS policy" in complaint for complaint in complaints)
        page.close()
