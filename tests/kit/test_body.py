# [Task]: T016 [From]: specs/requirements.md
"""How the body of a request is read, whichever endpoint it is for."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from databases import on_one_database
from support import JSON, Caller, assert_error, assert_invalid

TOO_LARGE = (413, "Request body is too large")


@pytest.mark.parametrize("text", [r"\u0000", r"\ud800", r"\udc00\ud800"])
async def test_may_hold_no_nul_nor_surrogate_in_what_is_kept(alice: Caller, text: str) -> None:
    task = await alice.add()
    for name in ("title", "description"):
        content = f'{{"title":"x","{name}":"a{text}b"}}'.encode()
        for method, path in (("POST", ""), ("PUT", f"/{task['id']}")):
            response = await alice.request(method, path, content=content, headers=JSON)
            assert_invalid(response, "body", name)
    assert (await alice.get()).json() == [task]


@on_one_database
class TestBody:
    """What POST, PUT and PATCH have in common: how a body is read."""

    @pytest.fixture(params=["POST", "PUT", "PATCH"])
    async def send(self, request: pytest.FixtureRequest, alice: Caller) -> Callable[..., Any]:
        task = await alice.add()
        path = {"POST": "", "PUT": f"/{task['id']}", "PATCH": f"/{task['id']}/complete"}

        async def send(content: Any, headers: dict[str, str] = JSON) -> Any:
            return await alice.request(
                request.param, path[request.param], content=content, headers=headers
            )

        return send

    @pytest.mark.parametrize(
        "content",
        [
            *(b"{", b"{]", b"nonsense", b"[]", b"1", b'"text"', b"null", b"true", b" "),
            b'{"title":"x","completed":true}x',
            b"{'title':'x','completed':true}",
            b'{"title":"x","completed":true,}',
            b'{"title":"x","completed":true,"n":NaN}',
            b'{"title":"x","completed":true,"n":Infinity}',
            b'{"title":"x","completed":true,"n":-Infinity}',
            b'{"title":"x","completed":true,"n":"\\ud800","m":NaN}',
            b'{"title":"x","completed":true,"n":"\\ud800","m":"\xff"}',
            b'{"title":"x","completed":true,"n":"\\ud800"',
            b'{"title":"x","completed":true,"n":"\\ud800","m":' + b"[" * 30_000,
            b'{"title":"x","completed":true,"n":"\x00"}',
            b'{"title":"x","completed":true,"n":"\xff"}',
            b'{"title":"x","completed":true,"n":"\xed\xa0\x80"}',
            b'\xef\xbb\xbf{"title":"x","completed":true}',
            b'{"title":"x","completed":true,"n":' + b"[" * 3000 + b"]" * 3000 + b"}",
            b'{"title":NaN,"completed":NaN}',
            b'{"title":' + b"9" * 5000 + b',"completed":' + b"9" * 5000 + b"}",
        ],
    )
    async def test_is_422_when_it_is_no_json_object(
        self, send: Callable[..., Any], content: bytes
    ) -> None:
        response = await send(content)
        assert response.status_code == 422, response.text
        items = response.json()["detail"]
        assert all(item.keys() == {"type", "loc", "msg"} for item in items)
        assert not re.search("Task[A-Z]|dictionary|instance", response.text)
        assert all(item["loc"][0] == "body" for item in items)

    @pytest.mark.parametrize("text", [r"\u0000", r"\ud800", r"\udc00\ud800", r"\ud83d\ude00"])
    async def test_may_hold_anything_in_what_is_ignored(
        self, send: Callable[..., Any], text: str
    ) -> None:
        for content in (f'"n":"{text}"', f'"n{text}":1', f'"n":{{"title":["{text}"]}}'):
            response = await send(f'{{"title":"x","completed":true,{content}}}'.encode())
            assert response.is_success, response.text

    async def test_is_read_as_json_of_any_kind(self, send: Callable[..., Any]) -> None:
        parameters = ("json", "json; charset=utf-8", "merge-patch+json")
        for content_type in (*(f"application/{kind}" for kind in parameters), "Application/JSON"):
            headers = {"Content-Type": content_type}
            # An escaped backslash, and no NUL.
            response = await send(rb'{"title":"\\u0000","completed":true}', headers=headers)
            assert response.is_success

    async def test_is_415_when_it_is_not_declared_as_json(self, send: Callable[..., Any]) -> None:
        types = ("", "text/plain", "application/x-www-form-urlencoded", "json")
        for headers in ({}, *({"Content-Type": content_type} for content_type in types)):
            response = await send(b'{"title":"x","completed":true}', headers=headers)
            assert_error(response, 415, "Content-Type must be application/json")

    async def test_may_be_64_kib_and_no_more(self, send: Callable[..., Any]) -> None:
        content = b'{"title":"x","completed":true}'

        async def chunks() -> Any:
            for _ in range(65):
                yield b" " * 1024

        assert (await send(content.ljust(64 * 1024))).is_success
        assert_error(await send(content.ljust(64 * 1024 + 1)), *TOO_LARGE)
        assert_error(await send(chunks()), *TOO_LARGE)

    async def test_is_422_when_it_is_empty_or_there_is_none(self, alice: Caller) -> None:
        task = await alice.add()
        for method, path in (("POST", ""), ("PUT", f"/{task['id']}")):
            assert_invalid(await alice.request(method, path, content=b"", headers=JSON), "body")
            missing = await alice.request(method, path)
            assert "content-type" not in missing.request.headers
            assert_invalid(missing, "body")
            assert missing.json()["detail"][0]["type"] == "missing"

    # What a server passes on that parses with httptools, where a request has an Upgrade.
    @pytest.mark.parametrize(
        ("announced", "content"),
        [
            ({"Content-Length": "18"}, b""),
            ({"Content-Length": "18"}, b'{"completed"'),
            ({"Content-Length": "18", "Upgrade": "h2c"}, b""),
            ({"Transfer-Encoding": "chunked", "Upgrade": "h2c"}, b""),
        ],
    )
    async def test_is_400_when_it_is_lost(
        self, alice: Caller, announced: dict[str, str], content: bytes
    ) -> None:
        task = await alice.add()
        one = f"/{task['id']}"
        with_json = [("POST", ""), ("PUT", one), ("PATCH", f"{one}/complete")]
        for method, path in [*with_json, ("GET", ""), ("GET", one), ("DELETE", one)]:
            headers = {**JSON, **announced}
            answer = await alice.request(method, path, content=content, headers=headers)
            assert_error(answer, 400, "Request body did not arrive in full")
            assert answer.headers["connection"] == "close"
        assert (await alice.get()).json() == [task]

    async def test_that_is_empty_in_chunks_is_none(self, alice: Caller) -> None:
        task = await alice.add()
        toggled = await alice.complete(task["id"], headers={"Transfer-Encoding": "chunked"})
        assert toggled.json()["completed"] is True
