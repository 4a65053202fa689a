# [Task]: T004 [From]: specs/requirements.md
"""The format of log lines, text or JSON, and their writer.

Every line has the id of its request, which kit/middleware.py sets. kit/access_log.py makes the line
of each request.
"""

import json
import logging
import os
import re
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from queue import SimpleQueue
from select import PIPE_BUF
from typing import Any, TextIO

from kit.tracebacks import safe_traceback
from settings import Settings, SettingsError, get_settings

logger = logging.getLogger("tasks.logs")

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="-")

# Seconds without a failure after which an outage is over.
OUTAGE_QUIET = 1.0
# The most lines that wait to be written.
MAX_WAITING = 10_000
# Lines are collected for so many seconds, and at most so many are written together.
GATHERING = 0.01
BATCH = 1_000
# Seconds that the end of the process waits for lines to be written.
FLUSH_TIMEOUT = 0.5

# Characters that would end a line, move a terminal's cursor or can't be encoded.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_COLOURS = {"DEBUG": 36, "INFO": 32, "WARNING": 33, "ERROR": 31, "CRITICAL": 91}


class LineFormatter(logging.Formatter):
    """Formats text on a terminal and JSON otherwise, unless LOG_FORMAT says which.

    It reads the settings for each line, because a line may report that they are invalid.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    def formatException(self, ei: Any) -> str:
        """The traceback without user data."""
        return safe_traceback(ei[1])

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().rstrip()
        failed = record.exc_info and record.exc_info[1]
        trace = self.formatException(record.exc_info) if failed else ""
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
        if self._stream is not None and self._stream.isatty():
            level = f"\x1b[{_COLOURS.get(record.levelname, 0)}m{level}\x1b[0m"
        padding = " " * (8 - len(record.levelname))
        # Indented, so that no line of it looks like a log line.
        indented = "".join(f"\n    {_visible(line)}" for line in trace.splitlines())
        return f"{level}{padding} [{current_request_id.get()}] {_visible(message)}{indented}"


def is_json(stream: TextIO | None) -> bool:
    """Whether lines on this stream are JSON."""
    chosen = None
    with suppress(SettingsError):  # A line will report it.
        chosen = get_settings().log_format
    return chosen == "json" if chosen else stream is None or not stream.isatty()


def timestamp(seconds: float) -> str:
    """The time in RFC 3339, UTC, with milliseconds."""
    return f"{_second(int(seconds))}.{int(seconds % 1 * 1000):03d}Z"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _visible(text: str) -> str:
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


class LineWriter:
    """Writes lines to a file from its own thread, so that no request waits for the file.

    A reader that stalls blocks only that thread. Meanwhile up to `MAX_WAITING` lines are kept and
    further ones are dropped. Lines that can't be written are dropped, too. When writing works
    again, the number of dropped lines is logged.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # A standard stream that was closed at the start is None. Each write to -1 fails.
        self._file = -1 if stream is None else stream.fileno()
        self._waiting: SimpleQueue[bytes | threading.Event | None] = SimpleQueue()
        self._dropped = 0
        self._line_is_broken = False
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue a line that ends with a line break, or drop it if too many are queued."""
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put(line.encode())
        else:
            self._dropped += 1

    def flush(self) -> None:
        """Wait up to `FLUSH_TIMEOUT` until all lines are written."""
        # After a fork, the thread exists in the parent process only.
        if self._thread.is_alive():
            written = threading.Event()
            self._waiting.put(written)
            written.wait(FLUSH_TIMEOUT)

    def close(self) -> None:
        """Flush and stop the thread."""
        self.flush()
        self._waiting.put(None)

    def _write_all(self) -> None:
        while True:
            items = [self._waiting.get()]
            # Each switch to this thread delays the event loop, so it takes several lines at once.
            time.sleep(GATHERING)
            items += [self._waiting.get() for _ in range(min(self._waiting.qsize(), BATCH))]
            # Workers may share one pipe, which keeps writes of up to PIPE_BUF bytes in one piece.
            lines = b""
            for item in items:
                if not isinstance(item, bytes) or len(lines) + len(item) > PIPE_BUF:
                    self._write(lines)
                    lines = b""
                if item is None:
                    return
                if isinstance(item, bytes):
                    lines += item
                else:
                    item.set()
            self._write(lines)

    def _write(self, lines: bytes) -> None:
        if not lines:
            return
        left = b"\n" * self._line_is_broken + lines
        try:
            while left:
                try:
                    left = left[os.write(self._file, left) :]
                except BlockingIOError:  # The parent process has made the file non-blocking.
                    select.select((), (self._file,), ())
        except OSError:
            self._line_is_broken |= len(left) < len(lines)
            self._dropped += left.count(b"\n")
            return
        self._line_is_broken = False
        if self._dropped and self._waiting.qsize() < MAX_WAITING / 2:
            dropped, self._dropped = self._dropped, 0
            logger.warning("%d log lines were dropped: they could not be written in time", dropped)


class LineHandler(logging.Handler):
    """Writes records in this service's format with a LineWriter."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(stream))
        self._writer = LineWriter(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record and queue it."""
        try:
            self._writer.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait until all lines are written."""
        self._writer.flush()

    def close(self) -> None:
        """Close the writer."""
        self._writer.close()
        super().close()


@contextmanager
def service_logs(settings: Settings) -> Iterator[None]:
    """Inside, the service logs from LOG_LEVEL on, and all records have a `request_id`.

    An operator's own log configuration stays as it is. Its formats may use `%(request_id)s`.
    """
    make_record = logging.getLogRecordFactory()

    def make_record_with_id(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        record.request_id = current_request_id.get()
        if record.exc_info and record.exc_info[1] is not None:
            # Other formatters use this text instead of making the traceback themselves.
            record.exc_text = safe_traceback(record.exc_info[1])
            if record.name == "asyncio":  # Its later lines describe tasks and errors with values.
                record.msg = str(record.msg).partition("\n")[0]
        return record

    service = logging.getLogger("tasks")
    with ExitStack() as restored:
        logging.setLogRecordFactory(make_record_with_id)
        restored.callback(logging.setLogRecordFactory, make_record)
        if service.level == logging.NOTSET:
            service.setLevel(settings.log_level.upper())
            restored.callback(service.setLevel, logging.NOTSET)
        if not service.hasHandlers():
            own_handler = LineHandler(sys.stderr)
            service.addHandler(own_handler)
            restored.callback(own_handler.close)
            restored.callback(service.removeHandler, own_handler)
        yield


class Outage:
    """A failure that lasts: it is logged once when it begins and once when it is over.

    It is over after OUTAGE_QUIET seconds without a failure, so that a fault that hits only some
    requests is one outage.
    """

    def __init__(self, logger: logging.Logger, what: str) -> None:
        self._logger = logger
        self._what = what
        self._began: float | None = None
        self._last = 0.0

    def begins(self, reason: str) -> None:
        """Record a failure."""
        self._last = time.monotonic()
        if self._began is None:
            self._began = self._last
            self._logger.error("%s: %s", self._what, reason)

    def ends(self) -> None:
        """Record a success."""
        if self._began is not None and time.monotonic() - self._last >= OUTAGE_QUIET:
            self._logger.warning("over after %.1f s: %s", self._last - self._began, self._what)
            self._began = None
