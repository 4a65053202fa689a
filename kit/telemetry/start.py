# [Task]: T060 [From]: specs/requirements.md
"""Starts telemetry if OTEL_* variables ask for it. Otherwise OpenTelemetry is not imported.

The variables are OpenTelemetry's own, so they are not in Settings. Its SDK reads most of them.
"""

import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from kit.database.database import Database

if TYPE_CHECKING:
    from kit.telemetry.record import Guard

logger = logging.getLogger("tasks.telemetry")


@asynccontextmanager
async def open_telemetry(app: FastAPI, database: Database, guard: "Guard") -> AsyncIterator[None]:
    """Inside, telemetry is recorded and sent as the OTEL_* variables say.

    If it can't be set up, the service starts without it and logs the reason.
    """
    async with AsyncExitStack() as stack:
        try:
            if signals := asked_for(os.environ):
                from kit.telemetry.export import exporting
                from kit.telemetry.record import recording

                providers = await stack.enter_async_context(exporting(signals, app.version))
                stack.enter_context(recording(app, database, guard, providers))
            elif not app._native_telemetry.enabled():
                # Otherwise FastAPI would look for OpenTelemetry's providers in each request: 6 µs.
                stack.enter_context(configured(app, tracing=False, metrics=False, logs=False))
        except ImportError as error:
            logger.warning(
                "telemetry is off: OTEL_* asks for it, and what sends it is not installed (%s): "
                "run uv sync --extra otel",
                error,
            )
        except ValueError as error:
            logger.warning("telemetry is off: %s", error)
        yield


@contextmanager
def configured(app: FastAPI, **options: Any) -> Iterator[None]:
    """Inside, FastAPI's own telemetry has these options of `FastAPI()`."""
    config: Any = app._native_telemetry.config
    before = config.copy()
    config.update(options)
    try:
        yield
    finally:
        config.update(before)


def asked_for(environment: Mapping[str, str]) -> list[str]:
    """The signals to send, of traces, metrics and logs: those with an endpoint or an exporter.

    Raises ValueError for an exporter or a protocol other than OTLP over HTTP.
    """

    def value(*names: str) -> str:
        found = (environment.get(name, "").strip().lower() for name in names)
        return next(filter(None, found), "")

    if value("OTEL_SDK_DISABLED") == "true":
        return []
    signals = []
    for signal in ("traces", "metrics", "logs"):
        its_exporter, its_otlp = f"OTEL_{signal.upper()}_EXPORTER", f"OTLP_{signal.upper()}"
        exporter = value(its_exporter)
        endpoint = value(f"OTEL_EXPORTER_{its_otlp}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
        protocol = value(f"OTEL_EXPORTER_{its_otlp}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        if exporter == "none" or not (exporter or endpoint):
            continue
        if exporter not in ("", "otlp"):
            raise ValueError(f"{its_exporter} must be otlp or none")
        if protocol not in ("", "http/protobuf"):
            raise ValueError(f"the OTLP protocol of {signal} must be http/protobuf")
        signals.append(signal)
    return signals
