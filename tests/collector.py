# [Task]: T060 [From]: specs/requirements.md
"""A collector: it takes what is sent by OTLP over HTTP, and shows what it has got."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span


def attributes(of: Any) -> dict[str, Any]:
    """Of a span, a data point, a log record or a resource."""
    return {pair.key: _value(pair) for pair in of.attributes}


def _value(pair: KeyValue) -> object:
    kind = pair.value.WhichOneof("value")
    return kind and getattr(pair.value, kind)


class Collector:
    """`status` is what it answers; what it has refused, it does not keep."""

    def __init__(self) -> None:
        self.status = 200
        self.refused = 0
        self.raw: list[bytes] = []
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.logs: list[ExportLogsServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Content-Encoding"] == "gzip":
                    body = gzip.decompress(body)
                collector.take(self.path, body)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, path: str, body: bytes) -> None:
        if self.status != 200:
            self.refused += 1
            return
        self.raw.append(body)
        match path:
            case "/v1/traces":
                self.traces.append(ExportTraceServiceRequest.FromString(body))
            case "/v1/metrics":
                self.metrics.append(ExportMetricsServiceRequest.FromString(body))
            case "/v1/logs":
                self.logs.append(ExportLogsServiceRequest.FromString(body))
            case _:
                raise ValueError(path)

    def _resources(self) -> Iterator[tuple[str, Any]]:
        """What was sent, with its kind, in that order."""
        for kind, many in (("spans", self.traces), ("metrics", self.metrics), ("logs", self.logs)):
            for sent in many:
                for resource in getattr(sent, f"resource_{kind}"):
                    yield kind, resource

    def _scopes(self, wanted: str) -> Iterator[Any]:
        for kind, resource in self._resources():
            if kind == wanted:
                yield from getattr(resource, f"scope_{kind}")

    def resources(self) -> list[dict[str, Any]]:
        return [attributes(resource.resource) for _, resource in self._resources()]

    def spans(self, name: str | None = None) -> list[Span]:
        """In the order they began."""
        spans = [span for scope in self._scopes("spans") for span in scope.spans]
        spans = [span for span in spans if name in (None, span.name)]
        return sorted(spans, key=lambda span: span.start_time_unix_nano)

    def metric(self, name: str) -> list[Metric]:
        """What was sent of a metric, in that order."""
        metrics = [metric for scope in self._scopes("metrics") for metric in scope.metrics]
        return [metric for metric in metrics if metric.name == name]

    def records(self, logger: str | None = None) -> list[LogRecord]:
        scopes = [scope for scope in self._scopes("logs") if logger in (None, scope.scope.name)]
        return [record for scope in scopes for record in scope.log_records]


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        thread.join()
        collector.server.server_close()
