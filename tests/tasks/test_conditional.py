# [Task]: T053 [From]: specs/requirements.md
"""If-Match, If-None-Match and the ETag of a task, on both databases."""

import asyncio

import httpx
import pytest
from support import Caller, assert_error

from db import Statement

OLDER = '"{id}-2020-01-01T00:00:00.000000Z"'
# The first ones as proxies that compress send the tag on.
MATCHING = {
    "as it is": "{tag}",
    "weak": "W/{tag}",
    "with a suffix": '{name}-gzip"',
    "weak with a suffix": 'W/{name}-br"',
    "with another suffix": '{name};gzip"',
    "suffixed after the quotes": "{tag}-zstd",
    "among others": f'"1-2020-01-01T00:00:00.000000Z", {{tag}} ,"x", {OLDER}',
    "any": "*",
}
OTHERS = {
    "an older version": OLDER,
    "another task's": '"9{id}-{updated_at}"',
    "no date": '"{id}-2020-13-45T99:00:00.000000Z"',
    "not ours": '"abc"',
    "one that it begins with": '"{id}-{updated_at:.19}"',
    "a star in quotes": '"*", "a, *"',
    "not quoted": "{id}-{updated_at}",
    "empty": "",
}


def as_sent(form: str, task: httpx.Response) -> str:
    tag = task.headers["etag"]
    return form.format(tag=tag, name=tag[:-1], **task.json())


@pytest.fixture
async def made(alice: Caller, request: pytest.FixtureRequest) -> httpx.Response:
    """A task; one that was made with a key is deleted by another statement."""
    headers = {"Idempotency-Key": "key"} if getattr(request, "param", None) == "keyed" else {}
    response = await alice.post({"title": "Buy milk"}, headers=headers)
    assert response.status_code == 201
    return response


keyed_or_not = pytest.mark.parametrize("made", ["", "keyed"], indirect=True)


async def changes(alice: Caller, task_id: int, forms: dict[str, str]) -> list[httpx.Response]:
    """Each kind of change, the deletion last, with these headers of the version there is then."""
    answers = []
    for method, path, body in (
        ("PUT", f"/{task_id}", {"title": "changed"}),
        ("PATCH", f"/{task_id}/complete", None),
        ("DELETE", f"/{task_id}", None),
    ):
        now = await alice.get(f"/{task_id}")
        sent = {name: as_sent(form, now) for name, form in forms.items()}
        answers.append(await alice.request(method, path, headers=sent, json=body))
    return answers


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


@keyed_or_not
@pytest.mark.parametrize("form", [*MATCHING.values(), *OTHERS.values()], ids=MATCHING | OTHERS)
async def test_tag_of_the_version_is_known_in_every_form(
    alice: Caller, made: httpx.Response, form: str
) -> None:
    """Of a list, in test_lists.py."""
    task, tag = made.json(), made.headers["etag"]
    path = f"/{task['id']}"
    matches = form in MATCHING.values()
    answer = await alice.get(path, headers={"If-None-Match": as_sent(form, made)})
    assert answer.headers["etag"] == tag
    if matches:
        assert (answer.status_code, answer.content) == (304, b"")
    else:
        assert (answer.status_code, answer.json()) == (200, task)
    refusing, letting = "If-None-Match", "If-Match"
    if not matches:
        refusing, letting = letting, refusing
    for answer in await changes(alice, task["id"], {refusing: form}):
        assert_error(answer, 412, "Task has changed")
        assert answer.headers["etag"] == tag
    assert (await alice.get(path)).json() == task
    same = await alice.put(path, {}, headers={letting: as_sent(form, made)})
    assert (same.status_code, same.headers["etag"]) == (200, tag)
    answers = await changes(alice, task["id"], {letting: form})
    assert [answer.status_code for answer in answers] == [200, 200, 204]
    changed = answers[1].json()
    assert (changed["title"], changed["completed"]) == ("changed", True)


@keyed_or_not
@pytest.mark.parametrize(
    ("if_match", "if_none_match"),
    [("*", "{tag}"), ("{tag}", "W/{tag}"), ("{tag}", "*"), (f"{{tag}}, {OLDER}", "{tag}")],
)
async def test_both_must_let_a_change_be(
    alice: Caller, made: httpx.Response, if_match: str, if_none_match: str
) -> None:
    forms = {"If-Match": if_match, "If-None-Match": if_none_match}
    for answer in await changes(alice, made.json()["id"], forms):
        assert_error(answer, 412, "Task has changed")
        assert answer.headers["etag"] == made.headers["etag"]
    assert (await alice.get()).json() == [made.json()]


async def test_of_a_task_that_is_not_there_is_404(alice: Caller, bob: Caller) -> None:
    bobs = await bob.post({"title": "Bob's"})
    for task_id in (bobs.json()["id"], 999):
        path = f"/{task_id}"
        for sent in ({"If-Match": "*"}, {"If-Match": bobs.headers["etag"]}, {"If-None-Match": "*"}):
            for answer in (
                await alice.get(path, headers=sent),
                await alice.put(path, {"title": "changed"}, headers=sent),
                await alice.complete(task_id, headers=sent),
                await alice.delete(path, headers=sent),
            ):
                assert_error(answer, 404, "Task not found")
    assert (await bob.get(f"/{bobs.json()['id']}")).json() == bobs.json()


async def test_post_ignores_both(alice: Caller) -> None:
    sent = {"If-None-Match": "*", "If-Match": '"a"'}
    assert (await alice.post({"title": "Buy milk"}, headers=sent)).status_code == 201


async def test_one_of_many_writers_wins_each_round(alice: Caller, made: httpx.Response) -> None:
    path, tag = f"/{made.json()['id']}", made.headers["etag"]
    for turn in range(3):
        sent = {"If-Match": tag}
        answers = await asyncio.gather(
            *(alice.put(path, {"title": f"{turn} {n}"}, headers=sent) for n in range(30))
        )
        won = [answer for answer in answers if answer.status_code == 200]
        lost = [answer for answer in answers if answer.status_code == 412]
        assert (len(won), len(lost)) == (1, 29)
        tag = won[0].headers["etag"]
        assert {answer.headers["etag"] for answer in lost} == {tag}
        assert (await alice.get(path)).json() == won[0].json()


async def test_32_tags_of_a_write_are_one_statement_and_more_are_refused(
    alice: Caller, made: httpx.Response, sent: list[Statement]
) -> None:
    task, path = made.json(), f"/{made.json()['id']}"
    others = [f'"{task["id"]}-2020-01-01T00:00:{n:02}.000000Z"' for n in range(31)]
    for headers in (
        {"If-None-Match": ", ".join([*others, '"a"'])},
        {"If-Match": ", ".join([*others, made.headers["etag"]])},
    ):
        sent.clear()
        answer = await alice.put(path, {"title": "Buy milk"}, headers=headers)
        assert (answer.status_code, answer.json(), len(sent)) == (200, task, 1)
    many = ", ".join([*others, "{tag}", '"a"'])
    for header in ("If-Match", "If-None-Match"):
        for answer in await changes(alice, task["id"], {header: many}):
            assert_error(answer, 400, "If-Match and If-None-Match may name 32 tags each")
    assert (await alice.get(path)).json() == task
