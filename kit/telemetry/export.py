# [Task]: T060 [From]: specs/requirements.md
"""How telemetry is sent: OpenTelemetry's SDK and its OTLP exporters, which read OTEL_* themselves.

What is recorded is told in record.py.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from threading import Thread
from typing import Any, NamedTuple

from opentelemetry._logs import LoggerProvider, NoOpLoggerProvider
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.sdk import _logs as sdk_logs
from opentelemetry.sdk import metrics as sdk_metrics
from opentelemetry.sdk import trace as sdk_trace
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.semconv.attributes.exception_attributes import (
    EXCEPTION_MESSAGE,
    EXCEPTION_STACKTRACE,
)
from opentelemetry.trace import NoOpTracerProvider, TracerProvider

from kit.logs import Outage
from kit.tracebacks import safe_text, safe_traceback

logger = logging.getLogger("tasks.telemetry")

# Seconds that an end of the service waits for what is left to be taken.
LAST_EXPORT = 2.0

# What a request's span is not to hold: users' ids, words that are searched for, and whatever else
# clients write there.
_REDACTED = ("url.path", "url.query")
# The logger of what the SDK keeps until it is sent.
_QUEUES = "opentelemetry.sdk._shared_internal"


class Providers(NamedTuple):
    """Where spans, measurements and log records go; those that nobody asked for go nowhere."""

    tracer: TracerProvider
    meter: MeterProvider
    logger: LoggerProvider


@asynccontextmanager
async def exporting(signals: Collection[str], version: str) -> AsyncIterator[Providers]:
    """Providers whose telemetry is sent in the background, and the rest of it at the end.

    Raises ValueError for a variable that the SDK can't take.
    """
    service = Resource.create({SERVICE_NAME: "task-api", SERVICE_VERSION: version})
    resource = service.merge(OTELResourceDetector().detect())
    providers = Providers(NoOpTracerProvider(), NoOpMeterProvider(), NoOpLoggerProvider())
    ends = []
    with _troubles_told() as troubles:
        if "traces" in signals:
            spans = sdk_trace.TracerProvider(resource=resource, shutdown_on_exit=False)
            spans.add_span_processor(_Redaction())
            spans.add_span_processor(BatchSpanProcessor(troubles.watched(OTLPSpanExporter())))
            providers = providers._replace(tracer=spans)
            ends.append(spans.shutdown)
        if "metrics" in signals:
            reader = PeriodicExportingMetricReader(troubles.watched(OTLPMetricExporter()))
            meters = sdk_metrics.MeterProvider([reader], resource, shutdown_on_exit=False)
            providers = providers._replace(meter=meters)
            ends.append(meters.shutdown)
        if "logs" in signals:
            records = sdk_logs.LoggerProvider(resource=resource, shutdown_on_exit=False)
            records.add_log_record_processor(_SafeExceptions())
            sending = BatchLogRecordProcessor(troubles.watched(OTLPLogExporter()))
            records.add_log_record_processor(sending)
            providers = providers._replace(logger=records)
            ends.append(records.shutdown)
        try:
            yield providers
        finally:
            # In threads that end with the process: one may wait for a collector that is mute.
            threads = [Thread(target=end, daemon=True) for end in ends]
            await asyncio.to_thread(_run, threads)


def _run(threads: list[Thread]) -> None:
    deadline = time.monotonic() + LAST_EXPORT
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


class _Redaction(sdk_trace.SpanProcessor):
    """A request's span says its route, and neither its path nor its query."""

    def on_start(self, span: sdk_trace.Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        for name in _REDACTED:
            if name in (span.attributes or {}):
                span.set_attribute(name, "REDACTED")


class _SafeExceptions(sdk_logs.LogRecordProcessor):
    """Exceptions in records, FastAPI's own included, without data of users."""

    def on_emit(self, log_record: sdk_logs.ReadWriteLogRecord) -> None:
        record = log_record.log_record
        if record.exception is not None:
            record.attributes = {
                **(record.attributes or {}),
                EXCEPTION_MESSAGE: safe_text(record.exception),
                EXCEPTION_STACKTRACE: safe_traceback(record.exception),
            }

    def shutdown(self) -> None:
        """Nothing is kept."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002
        return True


class _Troubles(logging.Handler):
    """Tells in lines of this service what the SDK and its exporters complain of.

    What is not taken by the collector, or dropped, is an outage, of which there is one line at the
    beginning and one at the end.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._dropping = Outage(logger, "telemetry is dropped")
        # By the loggers that tell of it.
        self._outages = {_QUEUES: self._dropping}

    def watched[T: OTLPSpanExporter | OTLPMetricExporter | OTLPLogExporter](self, exporter: T) -> T:
        """The exporter, whose failures are outages from now on."""
        # Under this name it logs.
        name = type(exporter).__module__
        what = {"trace_exporter": "spans", "metric_exporter": "metrics"}.get(
            name.rpartition(".")[2], "log records"
        )
        outage = self._outages[name] = Outage(logger, f"{what} are not taken by the collector")
        export: Any = exporter.export

        def export_watched(*arguments: Any, **options: Any) -> Any:
            result = export(*arguments, **options)
            if result.name == "SUCCESS":
                outage.ends()
                self._dropping.ends()
            return result

        exporter.export = export_watched  # type: ignore[method-assign]
        return exporter

    def emit(self, record: logging.LogRecord) -> None:
        outage = self._outages.get(record.name)
        if outage is None:
            logger.log(record.levelno, "%s", record.getMessage(), exc_info=record.exc_info)
        else:
            outage.begins(record.getMessage())


@contextmanager
def _troubles_told() -> Iterator[_Troubles]:
    troubles, theirs = _Troubles(), logging.getLogger("opentelemetry")
    before = theirs.propagate
    theirs.addHandler(troubles)
    theirs.propagate = False
    try:
        yield troubles
    finally:
        theirs.propagate = before
        theirs.removeHandler(troubles)
