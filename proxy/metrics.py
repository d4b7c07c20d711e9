"""Counters and histograms, in Prometheus' text format.

Facts
  - Names and labels are Bifrost's where the thing is the same, so that its dashboards go on working.
  - A label value that clients choose is a memory leak: each makes new series.
  - Looking a child up by its labels costs more in `prometheus_client` than counting; a request would do
    it fifteen times. So one record is found per request, and the library writes them out when asked.

Rules
  1. Every label has a closed or capped set of values: routes, known methods, statuses, configured
     providers and their keys, the first `MAX_NAMES` names of virtual keys, and at most `MAX_MODELS` model
     names that upstream has answered for.
  2. The tables belong to their server; nothing is global.

Not here: what is logged per request (`accesslog`).
"""

from __future__ import annotations

import http
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from .config import Config
from .exchange import Exchange
from .limits import PICO

MAX_MODELS = 100

MAX_NAMES = 1000

STATUSES = frozenset((0, 529, *http.HTTPStatus))

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_BYTES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
_TRIES = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0)
_HTTP = ("path", "method", "status")
_MODEL = ("provider", "model", "method", "fallback_index")
_Read = Callable[[], float]
_PAID = (*_MODEL, "selected_key_name", "virtual_key_name")


class _Histogram:
    """Counts per bucket, and the sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def write(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add the samples, with cumulative buckets as the format wants them."""
        so_far = 0
        buckets = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            so_far += count
            buckets.append((bound, float(so_far)))
        if so_far:
            family.add_metric(labels, buckets, self._sum)


class _Requests:
    """What is counted for one route, method and status."""

    __slots__ = ("bytes_in", "bytes_out", "count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = _Histogram(_SECONDS)
        self.bytes_in = _Histogram(_BYTES)
        self.bytes_out = _Histogram(_BYTES)


class _Times:
    """What is measured for one provider, model, route and place in the plan."""

    __slots__ = ("first", "latency", "retries")

    def __init__(self) -> None:
        self.latency = {"true": _Histogram(_SECONDS), "false": _Histogram(_SECONDS)}
        self.first = _Histogram(_SECONDS)
        self.retries = _Histogram(_TRIES)


class _Counts:
    """What is counted for the same, and for one provider key and one virtual key."""

    __slots__ = ("cost", "count", "errors", "input", "output", "success")

    def __init__(self) -> None:
        self.count = 0
        self.success = 0
        self.errors: dict[str, int] = defaultdict(int)
        self.input = 0
        self.output = 0
        self.cost = 0


class Metrics(Collector):
    """Observes finished exchanges; `text` is what ``/metrics`` answers."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, config: Config) -> None:
        self._models: set[str] = set()
        self._read: list[tuple[type[GaugeMetricFamily | CounterMetricFamily], str, str, _Read]] = []
        self._reloads = {"good": 0, "refused": 0}
        self._active = 0
        self._pings = 0
        self._endings: dict[str, int] = defaultdict(int)
        self._requests: dict[tuple[str, ...], _Requests] = defaultdict(_Requests)
        self._times: dict[tuple[str, ...], _Times] = defaultdict(_Times)
        self._counts: dict[tuple[str, ...], _Counts] = defaultdict(_Counts)
        self._names: set[str] = {""}
        self._keys: set[tuple[str, str]] = set()
        self._keys_out: Callable[[], list[tuple[str, str]]] = list
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.use(config)

    def use(self, config: Config) -> None:
        """Count by this config from now on."""
        self._configured = {
            target.partition("/")[2] for targets in config.models.values() for target in targets
        }
        self._keys = {(name, key) for name, keys in config.key_names().items() for key in keys}

    def watch_keys(self, out: Callable[[], list[tuple[str, str]]]) -> None:
        """Show as down what `out` returns: provider and name of the keys that are out."""
        self._keys_out = out

    def gauge(self, name: str, documentation: str, read: _Read) -> None:
        """Show what `read` returns when the metrics are asked for."""
        self._read.append((GaugeMetricFamily, name, documentation, read))

    def counter(self, name: str, documentation: str, read: _Read) -> None:
        """The same for what only grows."""
        self._read.append((CounterMetricFamily, name, documentation, read))

    def reloaded(self, *, good: bool) -> None:
        """Count a reload of the config, or the refusal of one."""
        self._reloads["good" if good else "refused"] += 1

    def begin(self) -> None:
        self._active += 1

    def observe(self, exchange: Exchange) -> None:
        """Count a finished exchange."""
        self._active -= 1
        self._pings += exchange.pings
        self._endings[exchange.ending] += 1
        path = exchange.route.label if exchange.route else "other"
        method = exchange.method if exchange.method in METHODS else "other"
        # An upstream may answer with any number.
        status = str(exchange.status) if exchange.status in STATUSES else f"{exchange.status // 100}xx"
        requests = self._requests[path, method, status]
        requests.count += 1
        requests.seconds.observe(exchange.ended - exchange.started)
        requests.bytes_in.observe(exchange.bytes_in)
        requests.bytes_out.observe(exchange.bytes_out)
        target = exchange.target
        if target is None:
            return
        good = 200 <= exchange.status < 400 and exchange.ending == "--"
        labels = (target.provider.name, self._model(target.model, good), path, str(target.index))
        times = self._times[labels]
        counts = self._counts[(*labels, exchange.key, self._name(exchange.virtual_key))]
        counts.count += 1
        if good:
            counts.success += 1
        else:
            left = exchange.ending[:1] in ("D", "d")
            counts.errors["499" if left else status] += 1
        if exchange.head_at:
            times.latency["true" if good else "false"].observe(exchange.head_at - exchange.started)
        if exchange.stream and exchange.first_at:
            times.first.observe(exchange.first_at - exchange.started)
        times.retries.observe(exchange.tried - 1)
        counts.input += exchange.tokens.get("input_tokens", 0)
        counts.output += exchange.tokens.get("output_tokens", 0)
        counts.cost += exchange.cost

    def text(self) -> bytes:
        """All series, in the exposition format of `content_type`."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What the library asks of a collector."""
        yield GaugeMetricFamily("bifrost_active_requests", "Requests in flight.", value=self._active)
        yield CounterMetricFamily("verbatim_pings", "Keepalive pings written.", value=self._pings)
        endings = CounterMetricFamily("verbatim_endings", "Requests, by their ending.", labels=["ending"])
        for ending, count in self._endings.items():
            endings.add_metric([ending], count)
        yield endings
        reloads = CounterMetricFamily("verbatim_config_reloads", "Reloads, by outcome.", labels=["outcome"])
        for outcome, count in self._reloads.items():
            reloads.add_metric([outcome], count)
        yield reloads
        up = GaugeMetricFamily(
            "bifrost_provider_key_up", "0: the key was refused, and is out.", labels=["provider", "key_name"]
        )
        out = self._keys_out()
        for provider, key in sorted(self._keys):
            up.add_metric([provider, key], float((provider, key) not in out))
        yield up
        for family, name, documentation, read in self._read:
            yield family(name, documentation, value=read())
        yield from self._collect_requests()
        yield from self._collect_served()

    def _collect_requests(self) -> Iterator[Metric]:
        count = CounterMetricFamily("http_requests", "Requests, by route and status.", labels=_HTTP)
        seconds = HistogramMetricFamily("http_request_duration_seconds", "Start to end.", labels=_HTTP)
        bytes_in = HistogramMetricFamily("http_request_size_bytes", "Request bodies.", labels=_HTTP)
        bytes_out = HistogramMetricFamily(
            "http_response_size_bytes", "Responses, heads included.", labels=_HTTP
        )
        for labels, requests in self._requests.items():
            count.add_metric(labels, requests.count)
            requests.seconds.write(seconds, labels)
            requests.bytes_in.write(bytes_in, labels)
            requests.bytes_out.write(bytes_out, labels)
        yield from (count, seconds, bytes_in, bytes_out)

    def _collect_served(self) -> Iterator[Metric]:
        count = CounterMetricFamily(
            "bifrost_upstream_requests", "Requests that were tried at a provider.", labels=_PAID
        )
        success = CounterMetricFamily(
            "bifrost_success_requests", "Of these, answered below 400.", labels=_PAID
        )
        errors = CounterMetricFamily(
            "bifrost_error_requests", "Of these, failed.", labels=(*_PAID, "status_code")
        )
        latency = HistogramMetricFamily(
            "bifrost_upstream_latency_seconds",
            "Start to the head of the answer, retries included.",
            labels=(*_MODEL, "is_success"),
        )
        first = HistogramMetricFamily(
            "bifrost_stream_first_token_latency_seconds", "Start to a stream's first bytes.", labels=_MODEL
        )
        retries = HistogramMetricFamily(
            "bifrost_request_retries", "Attempts beyond the first.", labels=_MODEL
        )
        tokens_in = CounterMetricFamily("bifrost_input_tokens", "Input tokens seen passing.", labels=_PAID)
        tokens_out = CounterMetricFamily("bifrost_output_tokens", "Output tokens seen passing.", labels=_PAID)
        cost = CounterMetricFamily("bifrost_cost", "US dollars, by the price list.", labels=_PAID)
        for labels, times in self._times.items():
            for is_success, histogram in times.latency.items():
                histogram.write(latency, (*labels, is_success))
            times.first.write(first, labels)
            times.retries.write(retries, labels)
        for labels, counts in self._counts.items():
            count.add_metric(labels, counts.count)
            success.add_metric(labels, counts.success)
            for status, failed in counts.errors.items():
                errors.add_metric((*labels, status), failed)
            tokens_in.add_metric(labels, counts.input)
            tokens_out.add_metric(labels, counts.output)
            cost.add_metric(labels, counts.cost / PICO)
        yield from (count, success, errors, latency, first, retries, tokens_in, tokens_out, cost)

    def _name(self, name: str) -> str:
        """The name of a virtual key as a label."""
        if name not in self._names:
            if len(self._names) >= MAX_NAMES:
                return "other"
            self._names.add(name)
        return name

    def _model(self, model: str, good: bool) -> str:
        """`model` as a label: a name joins the set when upstream has answered for it, while there is room."""
        if model in self._configured or model in self._models:
            return model
        if good and len(self._models) < MAX_MODELS:
            self._models.add(model)
            return model
        return "other"
