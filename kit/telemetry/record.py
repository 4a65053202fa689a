# [Task]: T060 [From]: specs/requirements.md
"""What telemetry records: requests (by FastAPI itself), statements, connections, tokens, logs.

It never records a token, a secret, a title, a path or a user id. export.py sends it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from fastapi import FastAPI
from opentelemetry._logs import LoggerProvider, SeverityNumber
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from kit.access_log import access_log
from kit.access_log import logger as access_logger
from kit.database.database import Core, Database, StatementSpan
from kit.errors import (
    AccessDenied,
    ExpiredToken,
    InvalidToken,
    KeysUnavailable,
    MissingToken,
    ServiceError,
)
from kit.logs import current_request_id
from kit.telemetry.export import Providers
from kit.telemetry.export import logger as own_logger
from kit.telemetry.start import configured

# By error class. The list is short, so that it makes few time series.
_VERDICTS: dict[type[ServiceError | None], str] = {
    type(None): "valid",
    MissingToken: "missing",
    InvalidToken: "invalid",
    ExpiredToken: "expired",
    AccessDenied: "denied",
    KeysUnavailable: "unavailable",
}
_SEVERITIES = {
    "DEBUG": SeverityNumber.DEBUG,
    "INFO": SeverityNumber.INFO,
    "WARNING": SeverityNumber.WARN,
    "ERROR": SeverityNumber.ERROR,
    "CRITICAL": SeverityNumber.FATAL,
}
# The loggers whose records are sent, with those of their children.
_LOGGERS = ("tasks", "_granian", "uvicorn.error")


class Guard(Protocol):
    """Checks tokens and reports its verdicts to an observer."""

    def observed_by(
        self, observer: Callable[[ServiceError | None], None]
    ) -> AbstractContextManager[None]: ...


@contextmanager
def recording(
    app: FastAPI, database: Database, guard: Guard, providers: Providers
) -> Iterator[None]:
    """Inside, the app and its database are recorded."""
    meter = providers.meter.get_meter("tasks", app.version)
    tracer = providers.tracer.get_tracer("tasks", app.version)
    records = _RecordExport(providers.logger)
    with ExitStack() as stack:
        stack.enter_context(
            configured(
                app,
                tracer_provider=providers.tracer,
                meter_provider=providers.meter,
                logger_provider=providers.logger,
            )
        )
        stack.enter_context(guard.observed_by(_verdict_counter(meter)))
        stack.enter_context(access_log.observed_by(records.request))
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(records)
            stack.callback(logging.getLogger(name).removeHandler, records)
        for member in database.members():
            member.statement_span = _statement_spans(tracer, member)
            stack.callback(setattr, member, "statement_span", None)
        _gauge_connections(meter, database)
        yield


def _statement_spans(tracer: Tracer, database: Database) -> StatementSpan:
    url = database.engine.url
    server = {"server.address": url.host} if url.host else {}

    @contextmanager
    def span(statement: Core, sql: str) -> Iterator[None]:
        # Every Statement uses the one table and begins with SELECT, INSERT, UPDATE or DELETE.
        operation = statement.__visit_name__.upper()
        attributes = {
            "db.system.name": database.engine.dialect.name,
            "db.operation.name": operation,
            "db.collection.name": database.table.name,
            "db.query.text": sql,
            **server,
        }
        with tracer.start_as_current_span(
            f"{operation} {database.table.name}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            # The exception's message may contain values.
            record_exception=False,
            set_status_on_exception=False,
        ) as current:
            try:
                yield
            except BaseException as error:
                current.set_attribute("error.type", type(error).__qualname__)
                current.set_status(StatusCode.ERROR)
                raise

    return span


def _gauge_connections(meter: Meter, database: Database) -> None:
    def in_use(_options: CallbackOptions) -> Iterable[Observation]:
        for member in database.members():
            state = {"db.client.connection.state": "used"}
            yield Observation(member.gate.in_use, {**_pool(member), **state})

    def waiting(_options: CallbackOptions) -> Iterable[Observation]:
        for member in database.members():
            yield Observation(member.gate.waiting, _pool(member))

    meter.create_observable_gauge(
        "db.client.connection.count",
        [in_use],
        "{connection}",
        "Connections that requests are using.",
    )
    meter.create_observable_gauge(
        "db.client.connection.pending_requests",
        [waiting],
        "{request}",
        "Requests that wait for a connection.",
    )


def _pool(database: Database) -> dict[str, str]:
    return {"db.client.connection.pool.name": database.setting}


def _verdict_counter(meter: Meter) -> Callable[[ServiceError | None], None]:
    counter = meter.create_counter(
        "tasks.token.verdicts", "{request}", "Requests by the verdict on their token."
    )

    def count(error: ServiceError | None) -> None:
        counter.add(1, {"reason": _VERDICTS[type(error)]})

    return count


class _RecordExport(logging.Handler):
    """Exports log records with their trace and span."""

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        # Access lines come through `request`. Errors of the exporter itself can't be exported.
        if record.name not in (access_logger.name, own_logger.name):
            self._send(record, {"request_id": current_request_id.get()})

    def request(
        self,
        request_id: str,
        method: str,
        route: str,
        status: int,
        ms: float,
        client: str,
        user: str,
    ) -> None:
        """Export the access line of a request. It is an observer of kit/access_log.py."""
        message = f"{method} {route} {status}"
        record = logging.makeLogRecord(
            {"name": access_logger.name, "levelname": "INFO", "msg": message}
        )
        self._send(
            record,
            {
                "request_id": request_id,
                "method": method,
                "route": route,
                "status": status,
                "ms": round(ms, 1),
                "client": client,
                "user": user,
            },
        )

    def _send(self, record: logging.LogRecord, attributes: dict[str, str | float]) -> None:
        self._provider.get_logger(record.name).emit(
            timestamp=int(record.created * 1e9),
            severity_number=_SEVERITIES.get(record.levelname, SeverityNumber.UNSPECIFIED),
            severity_text=record.levelname,
            body=record.getMessage(),
            attributes=attributes,
            exception=record.exc_info[1] if record.exc_info else None,
        )
