# [Task]: T041 [From]: specs/requirements.md
"""Before anything is measured: do all contestants give the same answers?"""

import re
from collections.abc import Sequence

from benchmarks.contestants import Answer, Running
from benchmarks.database import Database
from benchmarks.operations import DELETE, POST, READER, SINGLE_OPERATIONS, Operation, Request

STATUS = {POST.name: 201, DELETE.name: 204}
# What each contestant chooses by itself.
_TIME = re.compile(rb'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"')
_ID = re.compile(rb'"id":\d+')


async def check_answers(database: Database, servers: Sequence[Running]) -> None:
    """Raises RuntimeError if one differs from the first in a status, a header of CONTRACT_HEADERS,
    or a byte of a body that is not the clock's or the sequence's.
    """
    for operation in SINGLE_OPERATIONS:
        request = database.requests(operation)[0]
        answers = [await _answer(database, server, operation, request) for server in servers]
        _compare(operation.name, servers, answers)
        expected = STATUS.get(operation.name, 200)
        if answers[0].status != expected:
            raise RuntimeError(f"{operation.name}: {answers[0]} rather than {expected}")
    for name, request, authorized, status in (
        ("a request without a token", Request("GET", READER), False, 401),
        ("a task that is not there", Request("GET", READER, "/999999999"), True, 404),
    ):
        refusals = []
        for server in servers:
            with server.client() as client:
                refusals.append(client.ask(request, authorized=authorized))
        _compare(name, servers, refusals)
        if refusals[0].status != status:
            raise RuntimeError(f"{name}: {refusals[0]} rather than {status}")


async def _answer(
    database: Database, server: Running, operation: Operation, request: Request
) -> Answer:
    await database.stage(operation)
    with server.client() as client:
        status, body, headers = client.ask(request)
    if request.method != "GET":
        body = _TIME.sub(b'"TIME"', body)
    if operation is POST:
        body = _ID.sub(b'"id":1', body)
    return Answer(status, body, headers)


def _compare(what: str, servers: Sequence[Running], answers: Sequence[Answer]) -> None:
    for server, answer in zip(servers, answers, strict=True):
        if answer != answers[0]:
            raise RuntimeError(
                f"{what}: {server.name} answers {answer}, {servers[0].name} {answers[0]}"
            )
