# [Task]: T090 [From]: specs/requirements.md
"""A whole list in one answer, read from one snapshot and written as JSON."""

import asyncio
from collections.abc import Sequence
from itertools import batched

from fastapi import Request, Response

from db import ReadSession, Record, Statement
from kit.long_answers import SHORT, LongAnswer, LongAnswers, Share
from schemas import tasks_json
from tasks.conditional import content_tag

# A list of up to so many tasks needs no reserved memory.
SHORT_LIST = 1000
# Tasks to write as JSON before other requests get a turn.
AT_A_TIME = 200


def long_answers(request: Request) -> LongAnswers:
    """The app's LongAnswers. Without a lifespan, one for this request alone."""
    return getattr(request.app.state, "long_answers", None) or LongAnswers()


async def whole_list(
    statement: Statement[ReadSession], session: ReadSession, share: Share, **values: object
) -> Sequence[Record]:
    """All tasks that the statement finds, from one snapshot.

    Raises TooManyLongAnswers and DatabaseUnavailable.
    """
    records = await statement.records(session, **values, part=SHORT_LIST + 1)
    if len(records) > SHORT_LIST:
        # An estimate for 10,000 tasks, which most lists stay below. list_answer corrects it.
        share.resize(10 * len(tasks_json(records[:SHORT_LIST])))
        records = await statement.records(session, **values)
    return records


async def list_answer(records: Sequence[Record], share: Share, headers: dict[str, str]) -> Response:
    """The tasks with their ETag and these headers. Raises TooManyLongAnswers."""
    parts = [tasks_json(records)] if len(records) <= AT_A_TIME else await _parts(records, share)
    # The end of a page shows only in its headers, so the tag covers them too.
    tag = content_tag([*parts, headers.get("X-Next-Cursor", "").encode()])
    headers = {**headers, "ETag": tag}
    if sum(map(len, parts)) > SHORT:
        return LongAnswer(parts, share, headers)
    share.resize(0)
    return Response(b"".join(parts), media_type="application/json", headers=headers)


async def _parts(records: Sequence[Record], share: Share) -> list[bytes]:
    """The JSON array in parts. Other requests get a turn after each part."""
    parts, size = [b"["], 0
    for some in batched(records, AT_A_TIME, strict=False):
        await asyncio.sleep(0)
        parts.append((b"," if size else b"") + tasks_json(some)[1:-1])
        size += len(parts[-1])
        if size > max(SHORT, share.size):
            share.resize(size)
    return [*parts, b"]"]
