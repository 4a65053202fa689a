# [Task]: T011 [From]: specs/requirements.md
"""Reads a JSON body in a dependency, so that the token is checked first.

FastAPI would read and parse a declared body parameter before any dependency.
"""

import asyncio
import json
import re
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import ClientDisconnect

from kit.errors import BodyLost, BodyTimeout, BodyTooLarge, UnsupportedMediaType

MAX_BODY_BYTES = 64 * 1024
# Seconds for the whole body. It is short because a stop of the service waits for open requests.
BODY_TIMEOUT = 5.0

# The headers that announce a body (RFC 9112 §6.3).
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_JSON_TYPE = re.compile(r"application/(json|[a-z0-9.!#$&^_-]+\+json)")
_NO_OBJECT = frozenset({"dict_type", "model_attributes_type", "model_type"})


class JsonBody[T]:
    """A dependency that gives the body as a `T`.

    Raises BodyLost, BodyTimeout, BodyTooLarge or UnsupportedMediaType. Raises
    RequestValidationError for a body that is not a `T` in JSON (RFC 8259, without NaN and
    Infinity).
    """

    def __init__(self, schema: type[T]) -> None:
        self._adapter = TypeAdapter(schema)

    async def __call__(self, request: Request) -> T:
        return self._parse(request, await read_body(request))

    def _parse(self, request: Request, body: bytes) -> T:
        declared = request.headers.get("content-type")
        if declared is None and not body:
            raise _invalid("missing", "Field required")
        media_type = (declared or "").partition(";")[0].strip().lower()
        if not _JSON_TYPE.fullmatch(media_type):
            raise UnsupportedMediaType(f"{media_type!r}")
        try:
            value = _parsed(body)
        except (ValueError, RecursionError):
            raise _invalid("json_invalid", "Body should be valid JSON") from None
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            items = error.errors(include_url=False, include_context=False, include_input=False)
            raise RequestValidationError(list(map(_of_body, items))) from None

    def openapi(self, *, required: bool = True) -> dict[str, Any]:
        """The `openapi_extra` of an endpoint that depends on this."""
        content = {"application/json": {"schema": self._adapter.json_schema()}}
        return {"requestBody": {"required": required, "content": content}}


class OptionalJsonBody[T](JsonBody[T]):
    """The same, but gives None if there is no body."""

    async def __call__(self, request: Request) -> T | None:  # type: ignore[override]
        body = await read_body(request)
        return self._parse(request, body) if body else None


async def ignored_body(request: Request) -> None:
    """A dependency that reads and ignores the body of a request that needs none.

    Granian closes a connection whose body was not read. Raises BodyLost or BodyTimeout.
    """
    # Most of these requests have no body and must not pay for it.
    if not _FRAMING.isdisjoint(dict(request.scope["headers"])):
        with suppress(BodyTooLarge):
            await read_body(request)


async def read_body(request: Request) -> bytes:
    """The body, within its limits. Raises BodyLost, BodyTimeout or BodyTooLarge."""
    fields = dict(request.scope["headers"])
    is_chunked = b"transfer-encoding" in fields
    length = fields.get(b"content-length")
    if length is None and not is_chunked and request.scope["http_version"].startswith("1"):
        return b""  # There is no body (RFC 9112 §6.3).
    declared = int(length[:20]) if length and length.isdigit() else 0
    if declared > MAX_BODY_BYTES:
        raise BodyTooLarge(f"Content-Length {declared}")
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise BodyTooLarge("chunked")
                # Granian announces the end in a message of its own, which takes as long again.
                more = message.get("more_body", False) and not 0 < declared <= len(body)
    except TimeoutError:
        raise BodyTimeout(f"{len(body)} bytes in {BODY_TIMEOUT} s") from None
    # Servers that parse with httptools lose the body of a request with an Upgrade header.
    if len(body) < declared or (is_chunked and b"upgrade" in fields and not body):
        raise BodyLost(f"{len(body)} bytes of {declared or 'a chunked body'}")
    return bytes(body)


def _parsed(body: bytes) -> Any:
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        if "hex escape" not in str(error):
            raise
        # pydantic-core refuses lone surrogates anywhere; `T` refuses them only in stored text.
        return json.loads(body.decode(), parse_constant=_refuse)


def _of_body(item: ErrorDetails) -> dict[str, Any]:
    located = {**item, "loc": ("body", *item["loc"])}
    # pydantic's own messages for a body that is no object name Python classes.
    no_object = {"type": "object_type", "msg": "Input should be a JSON object"}
    return located | no_object if item["type"] in _NO_OBJECT else located


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _invalid(kind: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body",), "msg": message}])
