"""Counters and histograms, in Prometheus' text format.

Facts
  - Names and labels are Bifrost's where the thing is the same, so that its dashboards go on working.
  - A label value that clients choose is a memory leak: each makes new series.

Rules
  1. Every label has a closed or capped set of values: routes, known methods, statuses, configured
     providers, and at most `MAX_MODELS` model names that upstream has answered for.
  2. The registry belongs to its server; nothing is global.

Not here: what is logged per request (`accesslog`).
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .config import Config
from .exchange import Exchange

MAX_MODELS = 100

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BYTES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
_HTTP = ("path", "method", "status")
_MODEL = ("provider", "model", "method", "fallback_index")


class Metrics:
    """Observes finished exchanges; `text` is what ``/metrics`` answers."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, config: Config) -> None:
        self._registry = registry = CollectorRegistry()
        self._models = {
            name for targets in config.models.values() for name in (t.partition("/")[2] for t in targets)
        }
        self._requests = Counter("http_requests", "Requests, by route and status.", _HTTP, registry=registry)
        self._duration = Histogram(
            "http_request_duration_seconds", "Start to end.", _HTTP, buckets=_SECONDS, registry=registry
        )
        self._bytes_in = Histogram(
            "http_request_size_bytes", "Request bodies.", _HTTP, buckets=_BYTES, registry=registry
        )
        self._bytes_out = Histogram(
            "http_response_size_bytes", "Responses, heads included.", _HTTP, buckets=_BYTES, registry=registry
        )
        self._active = Gauge("bifrost_active_requests", "Requests in flight.", registry=registry)
        self._upstream = Counter(
            "bifrost_upstream_requests", "Requests that reached a provider.", _MODEL, registry=registry
        )
        self._success = Counter(
            "bifrost_success_requests", "Of these, answered below 400.", _MODEL, registry=registry
        )
        self._error = Counter(
            "bifrost_error_requests", "Of these, failed.", (*_MODEL, "status_code"), registry=registry
        )
        self._latency = Histogram(
            "bifrost_upstream_latency_seconds",
            "Start to the head of the answer, retries included.",
            (*_MODEL, "is_success"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "bifrost_stream_first_token_latency_seconds",
            "Start to the first bytes of a stream.",
            _MODEL,
            buckets=_SECONDS,
            registry=registry,
        )
        self._retries = Histogram(
            "bifrost_request_retries",
            "Attempts beyond the first.",
            _MODEL,
            buckets=(0, 1, 2, 3, 5, 10),
            registry=registry,
        )
        self._input = Counter("bifrost_input_tokens", "Input tokens seen passing.", _MODEL, registry=registry)
        self._output = Counter(
            "bifrost_output_tokens", "Output tokens seen passing.", _MODEL, registry=registry
        )
        self._endings = Counter(
            "verbatim_endings", "Requests, by their ending.", ("ending",), registry=registry
        )
        self._pings = Counter("verbatim_pings", "Keepalive pings written.", registry=registry)

    def begin(self) -> None:
        self._active.inc()

    def observe(self, exchange: Exchange) -> None:
        """Count a finished exchange."""
        self._active.dec()
        self._endings.labels(exchange.ending).inc()
        self._pings.inc(exchange.pings)
        path = exchange.route.label if exchange.route else "other"
        method = exchange.method if exchange.method in METHODS else "other"
        labels = (path, method, str(exchange.status))
        seconds = exchange.ended - exchange.started
        self._requests.labels(*labels).inc()
        self._duration.labels(*labels).observe(seconds)
        self._bytes_in.labels(*labels).observe(exchange.bytes_in)
        self._bytes_out.labels(*labels).observe(exchange.bytes_out)
        if exchange.target is not None:
            self._observe_upstream(exchange, path)

    def text(self) -> bytes:
        """All series, in the exposition format of `content_type`."""
        return generate_latest(self._registry)

    def _observe_upstream(self, exchange: Exchange, path: str) -> None:
        target = exchange.target
        if target is None:
            return
        good = 200 <= exchange.status < 400 and exchange.ending == "--"
        labels = (target.provider.name, self._model(target.model, good), path, str(target.index))
        self._upstream.labels(*labels).inc()
        if good:
            self._success.labels(*labels).inc()
        else:
            self._error.labels(*labels, str(exchange.status)).inc()
        if exchange.head_at:
            self._latency.labels(*labels, str(good).lower()).observe(exchange.head_at - exchange.started)
        if exchange.stream and exchange.first_at:
            self._first.labels(*labels).observe(exchange.first_at - exchange.started)
        self._retries.labels(*labels).observe(max(0, len(exchange.attempts) - 1))
        counts = exchange.usage.counts()
        self._input.labels(*labels).inc(counts.get("input_tokens", 0))
        self._output.labels(*labels).inc(counts.get("output_tokens", 0))

    def _model(self, model: str, good: bool) -> str:
        """`model` as a label: a name joins the set when upstream has answered for it, while there is room."""
        if model in self._models:
            return model
        if good and len(self._models) < MAX_MODELS:
            self._models.add(model)
            return model
        return "other"
