# [Task]: T004 [From]: specs/requirements.md
"""The form of a log line, uvicorn's and this service's alike: text for people, JSON for machines.

Every line carries the id of the request it belongs to, which kit/middleware.py sets. The line
that each request gets is written by kit/access_log.py.
"""

import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TextIO, TypeIs

from uvicorn.config import LOGGING_CONFIG

from settings import Settings, SettingsError, get_settings

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="-")

# Seconds without a failure after which an outage is over.
OUTAGE_QUIET = 1.0

# What would end a line, move a terminal's cursor or can't be encoded.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_COLOURS = {"DEBUG": 36, "INFO": 32, "WARNING": 33, "ERROR": 31, "CRITICAL": 91}


class LineFormatter(logging.Formatter):
    """Text on a terminal and JSON otherwise, unless LOG_FORMAT says which.

    The settings are read when a line is formatted, since uvicorn writes some before they are
    checked.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().rstrip()
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if is_json(self._stream):
            line = {
                "time": timestamp(record.created),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": message,
                "request_id": current_request_id.get(),
            }
            return json.dumps(line | {"exception": trace} if trace else line)
        level = f"{record.levelname}:"
        if self._stream.isatty():
            level = f"\x1b[{_COLOURS.get(record.levelname, 0)}m{level}\x1b[0m"
        padding = " " * (8 - len(record.levelname))
        # Indented, so that nothing in it can be taken for a line of its own.
        indented = "".join(f"\n    {_visible(line)}" for line in trace.splitlines())
        return f"{level}{padding} [{current_request_id.get()}] {_visible(message)}{indented}"


def is_json(stream: TextIO) -> bool:
    """Whether what is written there is to be JSON."""
    chosen = None
    with suppress(SettingsError):  # Which is one of the lines to come.
        chosen = get_settings().log_format
    return chosen == "json" if chosen else not stream.isatty()


def timestamp(seconds: float) -> str:
    """RFC 3339, UTC, with milliseconds."""
    return f"{_second(int(seconds))}.{int(seconds % 1 * 1000):03d}Z"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _visible(text: str) -> str:
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def take_over_uvicorns_lines() -> None:
    """Give uvicorn's lines this service's form, where uvicorn has set them up by its defaults."""
    for handler in logging.getLogger("uvicorn").handlers:
        if is_uvicorns_own(handler):
            handler.setFormatter(LineFormatter(handler.stream))


def is_uvicorns_own(handler: logging.Handler) -> TypeIs[logging.StreamHandler[TextIO]]:
    """Whether it is as uvicorn makes it by default, and so no operator's."""
    formatter = handler.formatter
    made = f"{type(formatter).__module__}.{type(formatter).__qualname__}"
    form = getattr(formatter, "_fmt", None)
    defaults = LOGGING_CONFIG["formatters"].values()
    return isinstance(handler, logging.StreamHandler) and any(
        (made, form) == (default["()"], default["fmt"]) for default in defaults
    )


@contextmanager
def service_logs(settings: Settings) -> Iterator[None]:
    """Inside, this service's lines are shown from LOG_LEVEL on, and records have a `request_id`.

    An operator's own log configuration is left as it is; its formats may use `%(request_id)s`.
    """
    make_record = logging.getLogRecordFactory()

    def make_record_with_id(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        record.request_id = current_request_id.get()
        return record

    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    service, server = logging.getLogger("tasks"), logging.getLogger("uvicorn.error")
    with ExitStack() as restored:
        logging.setLogRecordFactory(make_record_with_id)
        restored.callback(logging.setLogRecordFactory, make_record)
        if service.level == logging.NOTSET:
            service.setLevel(level)
            restored.callback(service.setLevel, logging.NOTSET)
        if server.level < level:
            restored.callback(server.setLevel, server.level)
            server.setLevel(level)
        if not service.hasHandlers():
            own_handler = logging.StreamHandler()
            own_handler.setFormatter(LineFormatter(sys.stderr))
            service.addHandler(own_handler)
            restored.callback(service.removeHandler, own_handler)
        yield


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
