# [Task]: T060 [From]: specs/requirements.md
"""Sends telemetry with OpenTelemetry's SDK and its OTLP exporters, which read OTEL_* themselves.

record.py records it.
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

# Seconds that the end of the service waits for the last export.
LAST_EXPORT = 2.0

# Attributes to remove from request spans: they contain user ids, searched words and other input.
_REDACTED = ("url.path", "url.query")
# The logger of the SDK's queues.
_QUEUES = "opentelemetry.sdk._shared_internal"


class Providers(NamedTuple):
    """The providers of spans, metrics and log records. Signals that are off have no-op ones."""

    tracer: TracerProvider
    meter: MeterProvider
    logger: LoggerProvider


@asynccontextmanager
async def exporting(signals: Collection[str], version: str) -> AsyncIterator[Providers]:
    """Providers that send telemetry in the background, and the remainder at the end.

    Raises ValueError for a variable that the SDK refuses.
    """
    service = Resource.create({SERVICE_NAME: "task-api", SERVICE_VERSION: version})
    resource = service.merge(OTELResourceDetector().detect())
    providers = Providers(NoOpTracerProvider(), NoOpMeterProvider(), NoOpLoggerProvider())
    ends = []
    with _problems_logged() as problems:
        if "traces" in signals:
            spans = sdk_trace.TracerProvider(resource=resource, shutdown_on_exit=False)
            spans.add_span_processor(_Redaction())
            spans.add_span_processor(BatchSpanProcessor(problems.watched(OTLPSpanExporter())))
            providers = providers._replace(tracer=spans)
            ends.append(spans.shutdown)
        if "metrics" in signals:
            reader = PeriodicExportingMetricReader(problems.watched(OTLPMetricExporter()))
            meters = sdk_metrics.MeterProvider([reader], resource, shutdown_on_exit=False)
            providers = providers._replace(meter=meters)
            ends.append(meters.shutdown)
        if "logs" in signals:
            records = sdk_logs.LoggerProvider(resource=resource, shutdown_on_exit=False)
            records.add_log_record_processor(_SafeExceptions())
            sending = BatchLogRecordProcessor(problems.watched(OTLPLogExporter()))
            records.add_log_record_processor(sending)
            providers = providers._replace(logger=records)
            ends.append(records.shutdown)
        try:
            yield providers
        finally:
            # In daemon threads, since one may wait for a collector that does not answer.
            threads = [Thread(target=end, daemon=True) for end in ends]
            await asyncio.to_thread(_run, threads)


def _run(threads: list[Thread]) -> None:
    deadline = time.monotonic() + LAST_EXPORT
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


class _Redaction(sdk_trace.SpanProcessor):
    """Removes path and query from request spans. The route stays."""

    def on_start(self, span: sdk_trace.Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        for name in _REDACTED:
            if name in (span.attributes or {}):
                span.set_attribute(name, "REDACTED")


class _SafeExceptions(sdk_logs.LogRecordProcessor):
    """Removes user data from exceptions in log records, including those of FastAPI."""

    def on_emit(self, log_record: sdk_logs.ReadWriteLogRecord) -> None:
        record = log_record.log_record
        if record.exception is not None:
            record.attributes = {
                **(record.attributes or {}),
                EXCEPTION_MESSAGE: safe_text(record.exception),
                EXCEPTION_STACKTRACE: safe_traceback(record.exception),
            }

    def shutdown(self) -> None:
        """Nothing to do: no record is kept."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002
        return True


class _Problems(logging.Handler):
    """Logs problems of the SDK and its exporters as lines of this service.

    Telemetry that the collector refuses or that is dropped is an outage: one line when it begins
    and one when it ends.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._dropping = Outage(logger, "telemetry is dropped")
        # By the name of the logger that reports it.
        self._outages = {_QUEUES: self._dropping}

    def watched[T: OTLPSpanExporter | OTLPMetricExporter | OTLPLogExporter](self, exporter: T) -> T:
        """The exporter, with its failures logged as outages."""
        # The name of the exporter's logger.
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
def _problems_logged() -> Iterator[_Problems]:
    problems, sdk_logger = _Problems(), logging.getLogger("opentelemetry")
    before = sdk_logger.propagate
    sdk_logger.addHandler(problems)
    sdk_logger.propagate = False
    try:
        yield problems
    finally:
        sdk_logger.propagate = before
        sdk_logger.removeHandler(problems)
