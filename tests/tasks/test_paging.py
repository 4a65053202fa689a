# [Task]: T052 [From]: specs/decisions.md
"""Cursors: good for the list they were given for, and for no other."""

import base64

import pytest
from pydantic import SecretStr
from starlette.requests import Request
from support import Caller, assert_error

from errors import InvalidCursor
from schemas import MAX_TASK_ID, ListQuery
from settings import Settings, get_settings
from tasks.paging import next_page, values_of

NEWEST = {"id": 7, "created_at": "2026-01-31T09:00:00.000000Z", "title": "Buy\0 milk"}
TITLED = {"id": MAX_TASK_ID, "title": 'é"\\/\n\U0001f600 ' * 10}


def request(query: bytes = b"") -> Request:
    return Request({"type": "http", "query_string": query, "headers": []})


def cursor_of(query: ListQuery, last: dict[str, object], user: str = "alice") -> str:
    return next_page(request(), query, user, last)["X-Next-Cursor"]


def refused(query: ListQuery, cursor: str, user: str = "alice") -> bool:
    with pytest.raises(InvalidCursor):
        values_of(query.model_copy(update={"cursor": cursor}), user)
    return True


class TestCursor:
    def test_brings_back_the_place(self) -> None:
        query = ListQuery(sort="title", limit=1)
        cursor = cursor_of(query, TITLED)
        assert cursor.isascii()
        assert not set(cursor) & set("+/=&?% ")
        found = values_of(ListQuery(sort="title", limit=9, cursor=cursor), "alice")
        assert found == {"title": TITLED["title"], "task_id": MAX_TASK_ID}

    def test_is_bound_to_user_filters_and_order(self) -> None:
        query = ListQuery(completed=True, search="milk", sort="created_at", order="asc")
        cursor = cursor_of(query, NEWEST)
        values_of(query.model_copy(update={"cursor": cursor}), "alice")
        assert refused(query, cursor, user="bob")
        for name, values in (
            *(("completed", (False, None)), ("search", ("MILK", None))),
            *(("sort", ("updated_at", "title")), ("order", ("desc",))),
        ):
            for value in values:
                assert refused(query.model_copy(update={name: value}), cursor)

    def test_that_was_changed_anywhere_is_none(self) -> None:
        query = ListQuery(sort="title")
        cursor = cursor_of(query, TITLED)
        for at, letter in enumerate(cursor):
            assert refused(query, cursor[:at] + ("B" if letter == "A" else "A") + cursor[at + 1 :])
            assert refused(query, cursor[:at])
        for other in (cursor + "=", cursor + "A", cursor + "\n", " " + cursor, cursor + "é"):
            assert refused(query, other)

    @pytest.mark.parametrize(
        "place",
        [
            *(b"", b"null", b"[]", b'["2026-01-31T09:00:00.000000Z"]'),
            b'["2026-01-31T09:00:00.000000Z", "1"]',
            b'["2026-01-31T09:00:00.000000Z", 0]',
            b'["2026-01-31T09:00:00.000000Z", 9223372036854775808]',
            b'["9999-99-99T09:00:00.000000Z", 1]',
            b'["0001-01-01T00:00:00+14:00", 1]',
            *(b'["a\\u0000b", 1]', b'["\\ud800", 1]', b"[" * 100_000),
        ],
    )
    def test_made_by_hand_is_none(self, place: bytes) -> None:
        made = base64.urlsafe_b64encode(b"x" * 12 + place).decode().rstrip("=")
        assert refused(ListQuery(), made)
        assert refused(ListQuery(sort="title"), made)

    def test_of_any_text_is_none(self) -> None:
        for text in ("", "a", "null", "é", "%", "a b", "A" * 50_000):
            assert refused(ListQuery(), text)

    def test_is_of_one_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cursor = cursor_of(ListQuery(), NEWEST)
        values_of(ListQuery(cursor=cursor), "alice")
        other = Settings(better_auth_secret=SecretStr("another secret of 32 bytes, at least"))
        monkeypatch.setattr("tasks.paging.get_settings", lambda: other)
        assert refused(ListQuery(), cursor)

    def test_stays_good_while_the_secret_is_changed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cursor = cursor_of(ListQuery(), NEWEST)
        today = SecretStr("another secret of 32 bytes, at least")
        before = get_settings().better_auth_secret
        both = Settings(better_auth_secret=today, better_auth_secret_previous=before)
        monkeypatch.setattr("tasks.paging.get_settings", lambda: both)
        assert values_of(ListQuery(cursor=cursor), "alice")
        # From here on they are signed with the one of today.
        assert cursor_of(ListQuery(), NEWEST) != cursor

    def test_is_of_one_database_where_there_is_no_secret(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def published_keys_alone(password: str) -> Settings:
            url = SecretStr(f"postgresql://tasks:{password}@db.example.com/tasks")
            return Settings(better_auth_url="https://auth.example.com", database_url=url)

        monkeypatch.setattr("tasks.paging.get_settings", lambda: published_keys_alone("a"))
        cursor = cursor_of(ListQuery(), NEWEST)
        assert values_of(ListQuery(cursor=cursor), "alice")
        monkeypatch.setattr("tasks.paging.get_settings", lambda: published_keys_alone("b"))
        assert refused(ListQuery(), cursor)


def test_next_page_replaces_the_cursor_that_was_sent() -> None:
    headers = next_page(request(b"cursor=old&limit=1"), ListQuery(limit=1), "a/b", NEWEST)
    cursor = headers["X-Next-Cursor"]
    assert headers["Link"] == f'</api/a%2Fb/tasks?cursor={cursor}&limit=1>; rel="next"'


async def test_cursor_of_another_is_400(alice: Caller, bob: Caller) -> None:
    for _ in range(2):
        await alice.add()
    cursor = (await alice.get(params={"limit": 1})).headers["x-next-cursor"]
    for unusable in (cursor, "abc"):
        answer = await bob.get(params={"limit": 1, "cursor": unusable})
        assert_error(answer, 400, "Invalid cursor")
    assert (await alice.get(params={"limit": 1, "cursor": cursor})).status_code == 200
