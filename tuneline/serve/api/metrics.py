"""Prometheus metrics of the front, in a registry of their own."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import GaugeMetricFamily

from tuneline.serve.api.record import Record
from tuneline.serve.engines.interface import EngineLoad

FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
REQUEST_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters and histograms by route, status and resolved version."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answering: Counter[str] = Counter()
        """Requests that a version answers at the moment, by resolved version."""

        self.loads: dict[str, EngineLoad] = {}
        """Load of the engines at the last scrape, by resolved version."""

        registry = self.registry
        self._requests = CounterMetric(
            "tuneline_requests", "Finished requests.", ("route", "status", "version"), registry=registry
        )
        self._errors = CounterMetric(
            "tuneline_errors", "Errors by code, also those inside a stream.", ("route", "code"), registry=registry
        )
        self._prompt_tokens = CounterMetric("tuneline_prompt_tokens", "Tokens read.", ("version",), registry=registry)
        self._completion_tokens = CounterMetric(
            "tuneline_completion_tokens", "Tokens generated.", ("version",), registry=registry
        )
        self._seconds = Histogram(
            "tuneline_request_seconds", "Duration.", ("route",), buckets=REQUEST_SECONDS, registry=registry
        )
        self._first_token = Histogram(
            "tuneline_time_to_first_token_seconds",
            "Time from the arrival of a request to its first token.",
            ("version",),
            buckets=FIRST_TOKEN_SECONDS,
            registry=registry,
        )
        self._token = Histogram(
            "tuneline_time_per_token_seconds",
            "Mean time between two tokens of an answer.",
            ("version",),
            buckets=TOKEN_SECONDS,
            registry=registry,
        )
        registry.register(self)

    def observe_request(self, record: Record) -> None:
        """Count a finished request."""
        self._requests.labels(record.route, record.status, record.version).inc()
        self._seconds.labels(record.route).observe(record.seconds)
        if record.error is not None:
            self._errors.labels(record.route, record.error).inc()
        if record.prompt_tokens:
            self._prompt_tokens.labels(record.version).inc(record.prompt_tokens)
        if record.completion_tokens:
            self._completion_tokens.labels(record.version).inc(record.completion_tokens)

    def observe_first_token(self, version: str, seconds: float) -> None:
        """Add a time to first token."""
        self._first_token.labels(version).observe(seconds)

    def observe_time_per_token(self, version: str, seconds: float) -> None:
        """Add the mean time between two tokens of an answer."""
        self._token.labels(version).observe(seconds)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield the gauges; called by the registry."""
        answering = GaugeMetricFamily("tuneline_requests_answering", "Requests in progress.", labels=("version",))
        for version, number in self.answering.items():
            answering.add_metric((version,), number)
        yield answering
        running = GaugeMetricFamily("tuneline_engine_running", "Answers that an engine generates.", labels=("version",))
        waiting = GaugeMetricFamily("tuneline_engine_waiting", "Answers that wait in an engine.", labels=("version",))
        for version, load in self.loads.items():
            running.add_metric((version,), load.running)
            waiting.add_metric((version,), load.waiting)
        yield running
        yield waiting

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
