# [Task]: T020 [From]: specs/requirements.md
"""Log lines carry the id of their request, in uvicorn's lines and in this service's."""

import asyncio
import io
import logging
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support import Caller
from uvicorn.config import LOGGING_CONFIG
from uvicorn.logging import DefaultFormatter

from logs import Outage, current_request_id, request_ids_in_logs

ID = "id-of-the-request"


def uvicorn_handler(name: str) -> tuple[logging.StreamHandler[io.StringIO], io.StringIO]:
    """A handler as uvicorn configures it, and what it writes to."""
    formatter = dict(LOGGING_CONFIG["formatters"][LOGGING_CONFIG["handlers"][name]["formatter"]])
    make: Callable[..., logging.Formatter] = pkgutil.resolve_name(formatter.pop("()"))
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(make(**formatter | {"use_colors": False}))
    return handler, stream


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One database will do: nothing here depends on which."""
    return sqlite_url


@contextmanager
def handlers_of(name: str | None, *handlers: logging.Handler, propagate: bool = False) -> Any:
    """The logger with these handlers in place of its own, and as it was afterwards."""
    logger = logging.getLogger(name)
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers = list(handlers)
    logger.propagate = propagate
    logger.setLevel(logging.INFO)
    try:
        yield logger
    finally:
        logger.handlers, logger.propagate, level = before
        logger.setLevel(level)


@contextmanager
def level_of(name: str, level: int) -> Iterator[logging.Logger]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield logger
    finally:
        logger.setLevel(before)


@pytest.fixture
def request_id() -> Iterator[str]:
    """The id of a request that is under way."""
    token = current_request_id.set(ID)
    yield ID
    current_request_id.reset(token)


class TestRecords:
    def test_have_the_id_of_their_request(
        self, request_id: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with request_ids_in_logs():
            logging.getLogger("of a library").warning("hello")
        [record] = caplog.records
        assert vars(record)["request_id"] == request_id

    def test_have_a_dash_outside_of_requests(self, caplog: pytest.LogCaptureFixture) -> None:
        with request_ids_in_logs():
            logging.getLogger("of a library").warning("hello")
        [record] = caplog.records
        assert vars(record)["request_id"] == "-"

    def test_are_still_made_by_the_operators_factory(
        self, request_id: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        plain = logging.getLogRecordFactory()

        def with_host(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = plain(*args, **kwargs)
            record.host = "example"
            return record

        logging.setLogRecordFactory(with_host)
        try:
            with request_ids_in_logs():
                logging.getLogger("of a library").warning("hello")
            assert logging.getLogRecordFactory() is with_host
        finally:
            logging.setLogRecordFactory(plain)
        [record] = caplog.records
        assert vars(record)["host"] == "example"
        assert vars(record)["request_id"] == request_id

    async def test_of_requests_at_once_are_not_mixed_up(
        self, alice: Caller, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "tasks.errors")
        sent = [f"request-{number}" for number in range(5)]
        await asyncio.gather(*(alice.get("/1", headers={"X-Request-ID": one}) for one in sent))
        missing = [record for record in caplog.records if record.name == "tasks.errors"]
        assert sorted(vars(record)["request_id"] for record in missing) == sent


class TestUvicorn:
    def test_lines_show_the_id(self, request_id: str) -> None:
        handler, stream = uvicorn_handler("default")
        with handlers_of("uvicorn", handler), request_ids_in_logs():
            logging.getLogger("uvicorn.error").info("Application startup complete.")
        assert stream.getvalue() == f"INFO:     [{request_id}] Application startup complete.\n"

    def test_access_lines_show_the_id(self, request_id: str) -> None:
        handler, stream = uvicorn_handler("access")
        with handlers_of("uvicorn.access", handler) as access, request_ids_in_logs():
            access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", "/health", "1.1", 200)
        assert stream.getvalue() == (
            f'INFO:     [{request_id}] 127.0.0.1:5 - "GET /health HTTP/1.1" 200 OK\n'
        )

    def test_access_lines_have_no_colours_unless_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handler, stream = uvicorn_handler("access")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        with handlers_of("uvicorn.access", handler) as access, request_ids_in_logs():
            access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", "/health", "1.1", 200)
        assert "\x1b" not in stream.getvalue()

    def test_colours_stay_as_they_were(self) -> None:
        handler, stream = uvicorn_handler("default")
        handler.setFormatter(DefaultFormatter("%(levelprefix)s %(message)s", use_colors=True))
        with handlers_of("uvicorn", handler) as logger, request_ids_in_logs():
            logger.info("hello")
        assert "\x1b[32mINFO\x1b[0m" in stream.getvalue()
        assert "[-] hello" in stream.getvalue()

    def test_format_of_an_operator_stays_as_it_was(self) -> None:
        handler, stream = uvicorn_handler("default")
        handler.setFormatter(DefaultFormatter("mine: %(message)s", use_colors=False))
        with handlers_of("uvicorn", handler) as logger, request_ids_in_logs():
            logger.info("hello")
        assert stream.getvalue() == "mine: hello\n"

    @pytest.mark.parametrize("name", ["uvicorn", "uvicorn.access"])
    def test_foreign_formatter_is_left_alone(self, name: str) -> None:
        class Own(DefaultFormatter):
            """An operator's, which only looks like uvicorn's."""

        foreign = [logging.Formatter("%(request_id)s|%(message)s"), Own("%(message)s"), None]
        handlers = [logging.StreamHandler(io.StringIO()) for _ in foreign]
        for handler, formatter in zip(handlers, foreign, strict=True):
            handler.setFormatter(formatter)
        with handlers_of(name, *handlers) as logger, request_ids_in_logs():
            assert [handler.formatter for handler in handlers] == foreign
            logger.info("hello")
        assert handlers[0].stream.getvalue() == "-|hello\n"

    def test_lines_after_it_are_as_before(self, request_id: str) -> None:
        handler, stream = uvicorn_handler("default")
        with handlers_of("uvicorn", handler) as logger:
            with request_ids_in_logs():
                pass
            logger.info("Finished server process")
        assert request_id not in stream.getvalue()
        assert stream.getvalue() == "INFO:     Finished server process\n"


class TestService:
    @pytest.fixture(autouse=True)
    def unhandled(self) -> Iterator[None]:
        """The service's logger as it is where nobody has configured logging."""
        with handlers_of("tasks", propagate=True):
            yield

    def test_lines_are_shown_where_nothing_else_handles_them(
        self, request_id: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with handlers_of(None), request_ids_in_logs():
            logging.getLogger("tasks.db").info("hello")
        assert capsys.readouterr().err == f"INFO:     [{request_id}] hello\n"

    def test_lines_are_shown_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        with handlers_of(None), request_ids_in_logs(), request_ids_in_logs():
            assert len(logging.getLogger("tasks").handlers) == 1
            logging.getLogger("tasks.db").info("hello")
        assert capsys.readouterr().err.count("hello") == 1

    def test_lines_go_to_the_operators_handlers(self, capsys: pytest.CaptureFixture[str]) -> None:
        stream = io.StringIO()
        with handlers_of(None, logging.StreamHandler(stream)), request_ids_in_logs():
            assert logging.getLogger("tasks").handlers == []
            logging.getLogger("tasks.db").info("hello")
        assert stream.getvalue() == "hello\n"
        assert capsys.readouterr().err == ""

    def test_lines_go_to_an_operators_handler_of_its_own(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stream = io.StringIO()
        own = logging.StreamHandler(stream)
        with handlers_of(None), handlers_of("tasks", own, propagate=True), request_ids_in_logs():
            logging.getLogger("tasks.db").info("hello")
        assert stream.getvalue() == "hello\n"
        assert capsys.readouterr().err == ""

    def test_lines_are_shown_though_the_root_is_at_warning(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As it is where nobody has configured logging."""
        with handlers_of(None) as root, level_of("tasks", logging.NOTSET):
            root.setLevel(logging.WARNING)
            with request_ids_in_logs():
                logging.getLogger("tasks.db").info("hello")
        assert "hello" in capsys.readouterr().err

    @pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING, logging.CRITICAL])
    def test_operators_level_is_left_alone(self, level: int) -> None:
        with level_of("tasks", level) as service, request_ids_in_logs():
            assert service.level == level


class TestAfterwards:
    @pytest.mark.parametrize("failing", [False, True], ids=["at the end", "after an error"])
    def test_everything_is_as_before(self, failing: bool) -> None:
        default, _ = uvicorn_handler("default")
        access, _ = uvicorn_handler("access")
        formatters = default.formatter, access.formatter
        factory = logging.getLogRecordFactory()
        with ExitStack() as stack:
            stack.enter_context(handlers_of("uvicorn", default))
            stack.enter_context(handlers_of("uvicorn.access", access))
            stack.enter_context(handlers_of(None))
            stack.enter_context(handlers_of("tasks", propagate=True))
            service = stack.enter_context(level_of("tasks", logging.NOTSET))
            if failing:
                with pytest.raises(ValueError, match="at the start"), request_ids_in_logs():
                    raise ValueError("at the start")
            else:
                with request_ids_in_logs():
                    assert (default.formatter, access.formatter) != formatters
                    assert service.handlers
            assert (default.formatter, access.formatter) == formatters
            assert logging.getLogRecordFactory() is factory
            assert service.handlers == []
            assert service.level == logging.NOTSET


class TestOutage:
    @pytest.fixture
    def outage(self) -> Outage:
        return Outage(logging.getLogger("of a library"), "it does not serve")

    def test_is_told_when_it_begins_and_when_it_is_over(
        self,
        outage: Outage,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("logs.OUTAGE_QUIET", 0.0)
        outage.begins("it is away")
        outage.begins("it is still away")
        outage.ends()
        outage.ends()
        began, over = caplog.records
        assert (began.levelno, began.getMessage()) == (
            logging.ERROR,
            "it does not serve: it is away",
        )
        assert (over.levelno, over.getMessage()) == (
            logging.WARNING,
            "over after 0.0 s: it does not serve",
        )

    def test_goes_on_while_only_some_requests_fail(
        self, outage: Outage, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(3):
            outage.begins("it is away")
            outage.ends()
        assert len(caplog.records) == 1

    def test_is_told_again_when_it_comes_again(
        self,
        outage: Outage,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("logs.OUTAGE_QUIET", 0.0)
        for _ in range(2):
            outage.begins("it is away")
            outage.ends()
        assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING] * 2

    def test_that_never_was_is_not_told(
        self, outage: Outage, caplog: pytest.LogCaptureFixture
    ) -> None:
        outage.ends()
        assert caplog.records == []
