# [Task]: T041 [From]: specs/requirements.md
"""What is asked of every contestant: the requests of each operation, and the rows it begins with.

Each operation has a user of its own, so that none meets what another has left.
"""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from support import sign

READER = "reader"
CHANGER = "changer"
CREATOR = "creator"
DELETER = "deleter"

# Tasks of the reader: what a person has.
LISTED = 50
# Tasks of the changer: so many that two changes at once seldom meet in one row.
CHANGED = 1000
# Tasks of the deleter: more than can be deleted in a run. Their ids are beyond the sequence's.
DELETED = 30_000
FIRST_DELETED = 1_000_000_000
# Tokens outlive the longest run.
TOKEN_LIFETIME = 3600


class Request(NamedTuple):
    method: str
    user: str
    path: str = ""
    body: Mapping[str, object] | None = None

    @property
    def url(self) -> str:
        return f"/api/{self.user}/tasks{self.path}"

    @property
    def text(self) -> str:
        return "" if self.body is None else json.dumps(self.body)


class Operation(NamedTuple):
    """`requests` makes them of the ids of the reader's and of the changer's tasks; `stage` is the
    SQL that makes the rows what they are at the beginning of each run.
    """

    name: str
    requests: Callable[[Sequence[int], Sequence[int]], list[Request]]
    stage: str = ""


_tokens: dict[str, str] = {}


def authorization(user: str) -> str:
    """The header of one and the same token, whenever it is asked for."""
    if user not in _tokens:
        _tokens[user] = sign(user, exp=int(time.time()) + TOKEN_LIFETIME)
    return f"Bearer {_tokens[user]}"


def _get(read: Sequence[int], _: Sequence[int]) -> list[Request]:
    return [Request("GET", READER, f"/{task_id}") for task_id in read]


def _list(_read: Sequence[int], _changed: Sequence[int]) -> list[Request]:
    return [Request("GET", READER)]


def _post(_read: Sequence[int], _changed: Sequence[int]) -> list[Request]:
    bodies = ({"title": f"Task {n}", "description": "What is to be done"} for n in range(100))
    return [Request("POST", CREATOR, body=body) for body in bodies]


def _put(_: Sequence[int], changed: Sequence[int]) -> list[Request]:
    # Twice around, so that each request is a change.
    return [
        Request("PUT", CHANGER, f"/{task_id}", {"title": f"Version {version} of {task_id}"})
        for version in (1, 2)
        for task_id in changed
    ]


def _complete(_: Sequence[int], changed: Sequence[int]) -> list[Request]:
    return [Request("PATCH", CHANGER, f"/{task_id}/complete") for task_id in changed]


def _delete(_read: Sequence[int], _changed: Sequence[int]) -> list[Request]:
    return [Request("DELETE", DELETER, f"/{FIRST_DELETED + n}") for n in range(DELETED)]


def _mix(read: Sequence[int], changed: Sequence[int]) -> list[Request]:
    """Of ten requests six read a task, two the list, one adds and one changes a task."""
    gets, [listing], posts, puts = (make(read, changed) for make in (_get, _list, _post, _put))
    requests = []
    for n, put in enumerate(puts):
        requests += [gets[(6 * n + i) % len(gets)] for i in range(6)]
        requests += [listing, listing, posts[n % len(posts)], put]
    # Always in the same order, but not in step with the connections.
    random.Random(0).shuffle(requests)  # noqa: S311  # no secret
    return requests


_FORGET_CREATED = f"DELETE FROM task WHERE user_id = '{CREATOR}';"
_FORGET_CHANGES = f"""
    UPDATE task SET title = 'Version 0', completed = false WHERE user_id = '{CHANGER}';
"""
_RESTORE_DELETED = f"""
    INSERT INTO task (id, user_id, title, description, completed, created_at, updated_at)
    OVERRIDING SYSTEM VALUE
    SELECT {FIRST_DELETED} + n, '{DELETER}', 'Task ' || n, 'To be deleted', false, now(), now()
    FROM generate_series(0, {DELETED} - 1) n
    ON CONFLICT (id) DO NOTHING;
"""

GET = Operation("GET one", _get)
LIST = Operation("GET list of 50", _list)
POST = Operation("POST", _post, _FORGET_CREATED)
PUT = Operation("PUT", _put, _FORGET_CHANGES)
COMPLETE = Operation("PATCH complete", _complete, _FORGET_CHANGES)
DELETE = Operation("DELETE", _delete, _RESTORE_DELETED)
MIX = Operation("mix, 80 % reads", _mix, _FORGET_CREATED + _FORGET_CHANGES)

SINGLE_OPERATIONS = (GET, LIST, POST, PUT, COMPLETE, DELETE)
OPERATIONS = (*SINGLE_OPERATIONS, MIX)
