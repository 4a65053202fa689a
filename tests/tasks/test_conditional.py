# [Task]: T053 [From]: specs/requirements.md
"""What clients make depend on a task's ETag, on both databases."""

import asyncio
from typing import Any

import httpx
import pytest
from support import Caller, assert_error

from db import Statement

# As proxies that compress send it on.
MANGLED = {
    "as it is": "{tag}",
    "weak": "W/{tag}",
    "with a suffix": '{name}-gzip"',
    "weak with a suffix": 'W/{name}-br"',
    "with another suffix": '{name};gzip"',
    "suffixed after the quotes": "{tag}-zstd",
    "among others": '"1-2020-01-01T00:00:00.000000Z", {tag} ,"x"',
    "any": "*",
}
OTHERS = {
    "an older version": '"{id}-2020-01-01T00:00:00.000000Z"',
    "another task's": '"9{id}-{updated_at}"',
    "no date": '"{id}-2020-13-45T99:00:00.000000Z"',
    "not ours": '"abc"',
    "one that it begins with": '"{id}-{updated_at:.19}"',
    "a star in quotes": '"*", "a, *"',
    "not quoted": "{id}-{updated_at}",
    "empty": "",
}


def as_sent(form: str, task: dict[str, Any], tag: str) -> str:
    return form.format(tag=tag, name=tag[:-1], **task)


@pytest.fixture
async def made(alice: Caller) -> httpx.Response:
    return await alice.post({"title": "Buy milk"})


async def test_etag_is_that_of_the_task_in_every_answer(alice: Caller) -> None:
    created = await alice.post({"title": "Buy milk"})
    path = f"/{created.json()['id']}"
    assert created.headers["etag"].startswith('"')
    assert (await alice.get(path)).headers["etag"] == created.headers["etag"]
    same = await alice.put(path, {"title": "Buy milk"})
    assert same.headers["etag"] == created.headers["etag"]
    changed = await alice.put(path, {"title": "Buy oats"})
    toggled = await alice.complete(created.json()["id"])
    assert (await alice.get(path)).headers["etag"] == toggled.headers["etag"]
    other = await alice.post({"title": "Buy milk"})
    assert len({answer.headers["etag"] for answer in (created, changed, toggled, other)}) == 4


class TestIfNoneMatch:
    @pytest.mark.parametrize("form", [*MANGLED.values(), *OTHERS.values()], ids=MANGLED | OTHERS)
    async def test_spares_what_is_known(
        self, alice: Caller, made: httpx.Response, form: str
    ) -> None:
        """Of a list, in test_lists.py."""
        task, tag = made.json(), made.headers["etag"]
        sent = {"If-None-Match": as_sent(form, task, tag)}
        answer = await alice.get(f"/{task['id']}", headers=sent)
        assert answer.headers["etag"] == tag
        if form in MANGLED.values():
            assert (answer.status_code, answer.content) == (304, b"")
        else:
            assert (answer.status_code, answer.json()) == (200, task)

    async def test_is_ignored_by_post_and_for_a_task_that_is_not_there(self, alice: Caller) -> None:
        answer = await alice.get("/1", headers={"If-None-Match": "*"})
        assert_error(answer, 404, "Task not found")
        sent = {"If-None-Match": "*", "If-Match": '"a"'}
        assert (await alice.post({"title": "Buy milk"}, headers=sent)).status_code == 201


async def changes(
    alice: Caller, task_id: int, if_match: str | None = None, if_none_match: str | None = None
) -> dict[str, httpx.Response]:
    """Each kind of change, the deletion last, of which only the first may find the version."""
    both = {"If-Match": if_match, "If-None-Match": if_none_match}
    sent = {name: header for name, header in both.items() if header is not None}
    path = f"/{task_id}"
    return {
        "PUT": await alice.request("PUT", path, headers=sent, json={"title": "changed"}),
        "PATCH": await alice.request("PATCH", f"{path}/complete", headers=sent),
        "DELETE": await alice.request("DELETE", path, headers=sent),
    }


class TestIfMatch:
    @pytest.mark.parametrize("form", MANGLED.values(), ids=MANGLED)
    async def test_lets_a_change_of_that_version_be(
        self, alice: Caller, made: httpx.Response, form: str
    ) -> None:
        task, tag = made.json(), made.headers["etag"]
        path = f"/{task['id']}"
        sent = {"If-Match": as_sent(form, task, tag)}
        changed = await alice.put(path, {"title": "changed"}, headers=sent)
        assert (changed.status_code, changed.json()["title"]) == (200, "changed")
        # What changes nothing moves nothing.
        sent = {"If-Match": as_sent(form, changed.json(), changed.headers["etag"])}
        same = await alice.put(path, {}, headers=sent)
        assert (same.status_code, same.headers["etag"]) == (200, changed.headers["etag"])
        sent = {"If-Match": as_sent(form, changed.json(), changed.headers["etag"])}
        toggled = await alice.request("PATCH", f"{path}/complete", headers=sent)
        assert toggled.json()["completed"] is True
        sent = {"If-Match": as_sent(form, toggled.json(), toggled.headers["etag"])}
        assert (await alice.request("DELETE", path, headers=sent)).status_code == 204

    @pytest.mark.parametrize("form", OTHERS.values(), ids=OTHERS)
    async def test_refuses_a_change_of_another(
        self, alice: Caller, made: httpx.Response, form: str
    ) -> None:
        task, tag = made.json(), made.headers["etag"]
        for answer in (await changes(alice, task["id"], as_sent(form, task, tag))).values():
            assert_error(answer, 412, "Task has changed")
            assert answer.headers["etag"] == tag
        assert (await alice.get(f"/{task['id']}")).json() == task

    async def test_of_a_task_that_is_not_there_is_404(self, alice: Caller, bob: Caller) -> None:
        bobs = await bob.post({"title": "Bob's"})
        for task_id in (bobs.json()["id"], 999):
            for if_match in ("*", bobs.headers["etag"]):
                for answer in (await changes(alice, task_id, if_match)).values():
                    assert_error(answer, 404, "Task not found")
        assert (await bob.get(f"/{bobs.json()['id']}")).json() == bobs.json()

    async def test_lets_one_of_many_writers_win_each_round(self, alice: Caller) -> None:
        created = await alice.post({"title": "Contended"})
        path, tag = f"/{created.json()['id']}", created.headers["etag"]
        for turn in range(3):
            sent = {"If-Match": tag}
            answers = await asyncio.gather(
                *(alice.put(path, {"title": f"{turn} {n}"}, headers=sent) for n in range(100))
            )
            won = [answer for answer in answers if answer.status_code == 200]
            lost = [answer for answer in answers if answer.status_code == 412]
            assert (len(won), len(lost)) == (1, 99)
            tag = won[0].headers["etag"]
            assert {answer.headers["etag"] for answer in lost} == {tag}
            assert (await alice.get(path)).json() == won[0].json()


@pytest.mark.parametrize("keyed", [False, True], ids=["", "keyed"])
class TestIfNoneMatchOfWrites:
    """A task that was made with a key is deleted by another statement."""

    @pytest.fixture
    async def made(self, alice: Caller, keyed: bool) -> httpx.Response:
        return await alice.post(
            {"title": "Buy milk"}, headers={"Idempotency-Key": "key"} if keyed else {}
        )

    @pytest.mark.parametrize(
        ("if_match", "if_none_match"),
        [
            (None, "*"),
            (None, "{tag}"),
            (None, 'W/"a", {tag}, "b"'),
            ("*", "{tag}"),
            ("{tag}", "W/{tag}"),
            ("{tag}", "*"),
            ('{tag}, "{id}-2020-01-01T00:00:00.000000Z"', "{tag}"),
        ],
    )
    async def test_refuses_a_change_of_it(
        self, alice: Caller, made: httpx.Response, if_match: str | None, if_none_match: str
    ) -> None:
        task, tag = made.json(), made.headers["etag"]
        if_match = if_match and as_sent(if_match, task, tag)
        answers = await changes(alice, task["id"], if_match, as_sent(if_none_match, task, tag))
        for answer in answers.values():
            assert_error(answer, 412, "Task has changed")
            assert answer.headers["etag"] == tag
        assert (await alice.get()).json() == [task]

    @pytest.mark.parametrize("form", OTHERS.values(), ids=OTHERS)
    async def test_lets_a_change_of_another_be(
        self, alice: Caller, made: httpx.Response, form: str
    ) -> None:
        task = made.json()
        others = as_sent(form, task, made.headers["etag"]) or '"a"'
        answers = await changes(alice, task["id"], if_none_match=others)
        assert [answer.status_code for answer in answers.values()] == [200, 200, 204]
        answers = await changes(alice, task["id"], if_none_match="*")
        assert [answer.status_code for answer in answers.values()] == [404, 404, 404]


class TestManyTags:
    """Of 32 on a write, any may be the task's, in one statement; more are refused."""

    async def test_are_one_statement(
        self, alice: Caller, made: httpx.Response, sent: list[Statement]
    ) -> None:
        sent.clear()
        task = made.json()
        others = [f'"{task["id"]}-2020-01-01T00:00:{n:02}.000000Z"' for n in range(31)]
        path = f"/{task['id']}"
        for headers in (
            {"If-None-Match": ", ".join([*others, '"a"'])},
            {"If-Match": ", ".join([*others, made.headers["etag"]])},
        ):
            answer = await alice.request("PUT", path, headers=headers, json={"title": "Buy milk"})
            assert (answer.status_code, answer.json(), len(sent)) == (200, task, 1)
            sent.clear()
        many = ", ".join([*others, made.headers["etag"], '"a"'])
        for both in ((many, None), (None, many)):
            for answer in (await changes(alice, task["id"], *both)).values():
                assert_error(answer, 400, "If-Match and If-None-Match may name 32 tags each")
        assert (await alice.get(path)).json() == task
