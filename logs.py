# [Task]: T004 [From]: specs/requirements.md
"""Log lines carry the id of the request they belong to. Who sets it: middleware/request.py."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, cast

from uvicorn.config import LOGGING_CONFIG
from uvicorn.logging import AccessFormatter, DefaultFormatter

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="-")

# Seconds without a failure after which an outage is over.
OUTAGE_QUIET = 1.0

_LINE = "%(levelprefix)s [%(request_id)s] %(message)s"
_UVICORN_FORMATS = [formatter["fmt"] for formatter in LOGGING_CONFIG["formatters"].values()]
_ACCESS_LINE = (
    '%(levelprefix)s [%(request_id)s] %(client_addr)s - "%(request_line)s" %(status_code)s'
)


class PlainAccessFormatter(AccessFormatter):
    """uvicorn's formatter for a log that is no terminal: the same line.

    There is one to every request, and uvicorn copies the record twice for the sake of colours.
    """

    def format(self, record: logging.LogRecord) -> str:
        client, method, path, version, status = cast(tuple[Any, ...], record.args)
        return (
            f"{record.levelname + ':':<9} [{getattr(record, 'request_id', '-')}] "
            f'{client} - "{method} {path} HTTP/{version}" {self.get_status_code(status)}'
        )


@contextmanager
def request_ids_in_logs() -> Iterator[None]:
    """Inside, every log record has a `request_id`, shown by uvicorn's lines and by this service's.

    An operator's own log configuration is left as it is; its formats may use `%(request_id)s`.
    """
    make_record = logging.getLogRecordFactory()

    def make_record_with_id(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        record.request_id = current_request_id.get()
        return record

    with ExitStack() as restored:
        logging.setLogRecordFactory(make_record_with_id)
        restored.callback(logging.setLogRecordFactory, make_record)
        for name in ("uvicorn", "uvicorn.access"):
            for handler in logging.getLogger(name).handlers:
                if (formatter := _with_request_id(handler.formatter)) is not None:
                    restored.callback(handler.setFormatter, handler.formatter)
                    handler.setFormatter(formatter)
        service = logging.getLogger("tasks")
        if service.level == logging.NOTSET:
            service.setLevel(logging.INFO)
            restored.callback(service.setLevel, logging.NOTSET)
        if not service.hasHandlers():
            own_handler = logging.StreamHandler()
            own_handler.setFormatter(DefaultFormatter(_LINE))
            service.addHandler(own_handler)
            restored.callback(service.removeHandler, own_handler)
        yield


def _with_request_id(formatter: logging.Formatter | None) -> logging.Formatter | None:
    """What takes the place of a formatter as uvicorn sets it up; None for any other."""
    if getattr(formatter, "_fmt", None) not in _UVICORN_FORMATS:
        return None
    if type(formatter) is DefaultFormatter:
        return DefaultFormatter(_LINE, use_colors=formatter.use_colors)
    if type(formatter) is AccessFormatter:
        if formatter.use_colors:
            return AccessFormatter(_ACCESS_LINE, use_colors=True)
        return PlainAccessFormatter(use_colors=False)
    return None


class Outage:
    """Something that goes wrong for a while: one log line when it begins, one when it is over.

    It is over when it has not gone wrong for a second, so that a fault which hits some requests and
    not others is one outage.
    """

    def __init__(self, logger: logging.Logger, what: str) -> None:
        self._logger = logger
        self._what = what
        self._began: float | None = None
        self._last = 0.0

    def begins(self, reason: str) -> None:
        """It has gone wrong."""
        self._last = time.monotonic()
        if self._began is None:
            self._began = self._last
            self._logger.error("%s: %s", self._what, reason)

    def ends(self) -> None:
        """It has gone well."""
        if self._began is not None and time.monotonic() - self._last >= OUTAGE_QUIET:
            self._logger.warning("over after %.1f s: %s", self._last - self._began, self._what)
            self._began = None
