# [Task]: T015 [From]: specs/requirements.md
"""What the tests share: signed tokens, callers of the API, the form of an error."""

import time
from typing import Any
from urllib.parse import quote

import httpx
import jwt

JSON = {"Content-Type": "application/json"}
SECRET = "a secret of the test suite, well over 32 bytes"


def sign(user: str, *, secret: str = SECRET, **claims: Any) -> str:
    """A token as the frontend's bridge route signs it; a claim of None is left out."""
    now = int(time.time())
    payload = {"sub": user, "iat": now, "exp": now + 900, **claims}
    payload = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode(payload, secret, algorithm="HS256")


class Caller:
    """One user's view of the API: paths are relative to the user's tasks."""

    def __init__(self, client: httpx.AsyncClient, user: str) -> None:
        self.user = user
        self.tasks = f"/api/{quote(user, safe='')}/tasks"
        self._client = client
        self.token = sign(user)

    async def request(
        self, method: str, path: str = "", *, headers: dict[str, str] | None = None, **kwargs: Any
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        return await self._client.request(method, self.tasks + path, headers=headers, **kwargs)

    async def get(self, path: str = "", **kwargs: Any) -> httpx.Response:
        return await self.request("GET", path, **kwargs)

    async def post(self, json: object, **kwargs: Any) -> httpx.Response:
        return await self.request("POST", json=json, **kwargs)

    async def put(self, path: str, json: object, **kwargs: Any) -> httpx.Response:
        return await self.request("PUT", path, json=json, **kwargs)

    async def complete(self, task_id: int, **kwargs: Any) -> httpx.Response:
        return await self.request("PATCH", f"/{task_id}/complete", **kwargs)

    async def delete(self, path: str, **kwargs: Any) -> httpx.Response:
        return await self.request("DELETE", path, **kwargs)

    async def add(self, title: str = "Buy milk", **members: Any) -> dict[str, Any]:
        """A task that is there: the JSON of a POST that succeeded."""
        response = await self.post({"title": title, **members})
        assert response.status_code == 201, response.text
        task: dict[str, Any] = response.json()
        return task


def assert_error(response: httpx.Response, status: int, detail: str) -> None:
    """The one form of every error but 422."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"detail": detail}


def assert_invalid(response: httpx.Response, *loc: object) -> None:
    """The one form of every 422: a list whose items say type, loc and msg, and echo nothing."""
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/json"
    items = response.json()["detail"]
    assert items
    assert all(item.keys() == {"type", "loc", "msg"} for item in items)
    assert list(loc) in [item["loc"] for item in items]
