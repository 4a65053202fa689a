# [Task]: T020 [From]: specs/requirements.md
"""One form for all lines, with the id of their request, and lines that can't be written."""

import asyncio
import io
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from contextvars import Context
from pathlib import Path
from threading import Thread
from typing import Any, TextIO

import pytest
from support import Caller

from kit.logs import (
    LineFormatter,
    LineHandler,
    LineWriter,
    Outage,
    current_request_id,
    service_logs,
    timestamp,
)
from settings import get_settings

ID = "id-of-the-request"


@pytest.fixture
def database_url(ready_sqlite_url: str) -> str:
    """One database will do: nothing here depends on which."""
    return ready_sqlite_url


@contextmanager
def configured(
    name: str | None, *handlers: logging.Handler, propagate: bool = False, level: int = logging.INFO
) -> Iterator[logging.Logger]:
    """The logger with these handlers in place of its own, and as it was afterwards."""
    logger = logging.getLogger(name)
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = list(handlers), propagate
    logger.setLevel(level)
    try:
        yield logger
    finally:
        logger.handlers, logger.propagate, level = before
        logger.setLevel(level)


@pytest.fixture
def request_id() -> Iterator[str]:
    """The id of a request that is under way."""
    token = current_request_id.set(ID)
    yield ID
    current_request_id.reset(token)


class TestRecords:
    def test_have_the_id_of_their_request_and_what_the_operators_factory_gives(
        self, request_id: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        plain = logging.getLogRecordFactory()

        def with_host(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = plain(*args, **kwargs)
            record.host = "example"
            return record

        logging.setLogRecordFactory(with_host)
        try:
            with service_logs(get_settings()):
                logging.getLogger("of a library").warning("hello")
                Context().run(logging.getLogger("of a library").warning, "outside of requests")
            assert logging.getLogRecordFactory() is with_host
        finally:
            logging.setLogRecordFactory(plain)
        seen = [(vars(record)["host"], vars(record)["request_id"]) for record in caplog.records]
        assert seen == [("example", request_id), ("example", "-")]

    async def test_of_requests_at_once_are_not_mixed_up(
        self, alice: Caller, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "tasks.errors")
        sent = [f"request-{number}" for number in range(5)]
        await asyncio.gather(*(alice.get("/1", headers={"X-Request-ID": one}) for one in sent))
        missing = [record for record in caplog.records if record.name == "tasks.errors"]
        assert sorted(vars(record)["request_id"] for record in missing) == sent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestForm:
    def said(self, stream: io.StringIO, *arguments: Any, **options: Any) -> str:
        """What a logger writes there."""
        handler = logging.StreamHandler(stream)
        handler.setFormatter(LineFormatter(stream))
        with configured("library", handler) as logger:
            logger.log(*arguments, **options)
        return stream.getvalue()

    @pytest.mark.parametrize(("form", "stream"), [("", io.StringIO), ("json", Terminal)])
    def test_lines_are_json_elsewhere(
        self,
        request_id: str,
        form: str,
        stream: type[io.StringIO],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("LOG_FORMAT", form)
        line = json.loads(self.said(stream(), logging.WARNING, "hello %s", "you"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
        assert line == {
            "level": "warning",
            "logger": "library",
            "message": "hello you",
            "request_id": request_id,
        }

    @pytest.mark.parametrize(
        ("form", "stream", "said"),
        [
            ("", Terminal, "\x1b[32mINFO:\x1b[0m     [{}] hello you\n"),
            ("text", Terminal, "\x1b[32mINFO:\x1b[0m     [{}] hello you\n"),
            # No colours in a file.
            ("text", io.StringIO, "INFO:     [{}] hello you\n"),
        ],
    )
    def test_lines_are_text_on_a_terminal_or_what_is_asked_for(
        self,
        request_id: str,
        form: str,
        stream: type[io.StringIO],
        said: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("LOG_FORMAT", form)
        assert self.said(stream(), logging.INFO, "hello %s", "you") == said.format(request_id)

    @pytest.mark.parametrize("form", ["text", "json"])
    def test_one_line_stays_one_whatever_is_in_it(
        self, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOG_FORMAT", form)
        forged = "a\nINFO:     [x] forged\r\x1b[2J\x7f\x00\x9b\u2028\ud800"
        said = self.said(io.StringIO(), logging.INFO, "%s", forged)
        assert len(said.splitlines()) == 1
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\ud800]", said)
        if form == "json":
            assert json.loads(said)["message"] == forged

    @pytest.mark.parametrize("form", ["text", "json"])
    def test_exception_is_told_in_full(self, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOG_FORMAT", form)
        try:
            raise RuntimeError("why\nERROR:    [x] forged")
        except RuntimeError:
            said = self.said(io.StringIO(), logging.ERROR, "it failed", exc_info=True)
        if form == "json":
            line = json.loads(said)
            assert line["message"] == "it failed"
            assert line["exception"].startswith("Traceback (most recent call last):\n")
            assert "RuntimeError: why" in line["exception"]
        else:
            first, *trace = said.splitlines()
            assert first == "ERROR:    [-] it failed"
            assert all(line.startswith("    ") for line in trace)
            assert "    RuntimeError: why" in trace

    def test_settings_that_are_refused_are_told_all_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOG_FORMAT", "xml")
        line = json.loads(self.said(io.StringIO(), logging.ERROR, "LOG_FORMAT is not usable"))
        assert line["message"] == "LOG_FORMAT is not usable"


LEVELS = [("debug", 4), ("info", 3), ("warning", 2), ("error", 1), (" Warning ", 2)]


class TestService:
    @pytest.mark.parametrize(("level", "shown"), LEVELS)
    def test_level_is_the_least_that_is_shown(
        self,
        level: str,
        shown: int,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setenv("LOG_LEVEL", level)
        unset = configured("tasks", propagate=True, level=logging.NOTSET)
        with unset, service_logs(get_settings()):
            for name in ("debug", "info", "warning", "error"):
                getattr(logging.getLogger("tasks.db"), name)("hello")
        assert len(caplog.records) == shown

    @pytest.mark.parametrize("failing", [False, True], ids=["at the end", "after an error"])
    def test_lines_are_shown_once_where_nothing_else_handles_them(
        self, request_id: str, capfd: pytest.CaptureFixture[str], failing: bool
    ) -> None:
        factory = logging.getLogRecordFactory()
        # As it is where nobody has configured logging.
        with (
            configured(None, level=logging.WARNING),
            configured("tasks", propagate=True, level=logging.NOTSET) as service,
        ):
            with suppress(LookupError), service_logs(get_settings()), service_logs(get_settings()):
                assert len(service.handlers) == 1
                logging.getLogger("tasks.db").info("hello")
                if failing:
                    raise LookupError
            # Everything is as before.
            assert logging.getLogRecordFactory() is factory
            assert (service.handlers, service.level) == ([], logging.NOTSET)
        line = json.loads(capfd.readouterr().err)
        assert (line["message"], line["request_id"]) == ("hello", request_id)

    @pytest.mark.parametrize("name", [None, "tasks"], ids=["for all", "of its own"])
    def test_lines_go_to_the_operators_handlers(
        self, capfd: pytest.CaptureFixture[str], name: str | None
    ) -> None:
        own = logging.StreamHandler(stream := io.StringIO())
        with (
            configured(None),
            configured("tasks", propagate=True),
            configured(name, own, propagate=True),
        ):
            before = list(logging.getLogger("tasks").handlers)
            with service_logs(get_settings()):
                assert logging.getLogger("tasks").handlers == before
                logging.getLogger("tasks.db").info("hello")
        assert stream.getvalue() == "hello\n"
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING, logging.CRITICAL])
    def test_operators_level_is_left_alone(self, level: int) -> None:
        with configured("tasks", level=level) as service, service_logs(get_settings()):
            assert service.level == level


class TestLineWriter:
    """A pipe holds 64 KiB of what nobody reads."""

    LINE = f"{'x' * 999}\n"

    @pytest.fixture
    def pipe(self) -> Iterator[tuple[int, TextIO]]:
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as stream:
            yield reader, stream

    def read(self, reader: int, count: int) -> list[str]:
        """So many lines."""
        text = b""
        while text.count(b"\n") < count:
            text += os.read(reader, 1 << 20)
        return text.decode().splitlines()

    def test_keeps_lines_in_order(self, pipe: tuple[int, TextIO]) -> None:
        with closing(LineWriter(pipe[1])) as writer:
            for number in range(1000):
                writer.write(f"{number}\n")
            assert self.read(pipe[0], 1000) == [f"{number}" for number in range(1000)]

    def test_drops_and_counts_what_a_stalled_reader_leaves(
        self,
        pipe: tuple[int, TextIO],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("kit.logs.MAX_WAITING", 10)
        with closing(LineWriter(pipe[1])) as writer:
            for _ in range(1000):
                writer.write(self.LINE)
            reading = Thread(target=self.read, args=(pipe[0], 90), daemon=True)
            reading.start()
            # A line that finds room again is followed by the count.
            while not caplog.records:
                time.sleep(0.01)
                writer.write("again\n")
        dropped = int(re.findall(r"^(\d+) log lines", caplog.messages[0])[0])
        assert 800 < dropped <= 1000

    def test_goes_on_after_a_full_disk(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with open("/dev/full", "w") as full, open(tmp_path / "log", "w") as good:
            writer = LineWriter(full)
            for _ in range(3):
                writer.write(self.LINE)
            writer.flush()
            assert not caplog.records
            os.dup2(good.fileno(), full.fileno())
            writer.write("again\n")
            writer.close()
        assert (tmp_path / "log").read_text() == "again\n"
        assert caplog.messages == ["3 log lines were dropped: they could not be written in time"]

    @pytest.mark.parametrize("closed", ["reader", "stream"])
    def test_outlives_a_closed_log(self, closed: str, pipe: tuple[int, TextIO]) -> None:
        if closed == "reader":
            os.close(pipe[0])
        with closing(LineWriter(pipe[1] if closed == "reader" else None)) as writer:
            writer.write(self.LINE)

    def test_waits_where_writes_are_refused_at_first(self, pipe: tuple[int, TextIO]) -> None:
        os.set_blocking(pipe[1].fileno(), False)
        with closing(LineWriter(pipe[1])) as writer:
            for _ in range(200):
                writer.write(self.LINE)
            assert len(self.read(pipe[0], 200)) == 200

    def test_end_waits_for_no_reader(self, pipe: tuple[int, TextIO]) -> None:
        handler = LineHandler(pipe[1])
        with configured("library", handler) as logger:
            for _ in range(100):
                logger.info("x" * 1000)
            began = time.monotonic()
            handler.close()
            assert time.monotonic() - began < 5


class TestOutage:
    @pytest.mark.parametrize("quiet", [0.0, 60.0])
    def test_is_told_when_it_begins_and_when_it_is_over_for_a_while(
        self, quiet: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("kit.logs.OUTAGE_QUIET", quiet)
        outage = Outage(logging.getLogger("of a library"), "it does not serve")
        outage.ends()
        for _ in range(3):
            outage.begins("it is away")
            outage.begins("it is still away")
            outage.ends()
            outage.ends()
        told = [
            (logging.ERROR, "it does not serve: it is away"),
            (logging.WARNING, "over after 0.0 s: it does not serve"),
        ]
        # It goes on while only some requests fail.
        expected = told[:1] if quiet else told * 3
        assert [(record.levelno, record.getMessage()) for record in caplog.records] == expected


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_800_000_000.5, "2027-01-15T08:00:00.500Z"),
        (1_800_000_000.9999, "2027-01-15T08:00:00.999Z"),
    ],
)
def test_timestamp_is_never_ahead(seconds: float, said: str) -> None:
    assert timestamp(seconds) == said
