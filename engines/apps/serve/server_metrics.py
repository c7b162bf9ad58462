"""The Prometheus metrics of a server."""

from __future__ import annotations

import importlib
from typing import Any

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Metrics of one server."""

    def __init__(self) -> None:
        prometheus: Any = importlib.import_module("prometheus_client")  # comes with Ray Serve
        self._write = prometheus.generate_latest
        self._registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter("ptqd_requests", "Answers by status.", ["status"], registry=self._registry)
        self.pictures = prometheus.Counter("ptqd_pictures", "Pictures sent.", registry=self._registry)
        self.again = prometheus.Counter("ptqd_retries", "Pictures requested again because a replica died.", registry=self._registry)
        self.waiting = prometheus.Gauge("ptqd_waiting_pictures", "Pictures requested but not yet sent.", registry=self._registry)
        self.seconds = prometheus.Histogram(
            "ptqd_request_seconds", "Seconds from a request to its answer.", buckets=SECONDS, registry=self._registry
        )
        self.batch = prometheus.Histogram("ptqd_batch_pictures", "Pictures per batch.", buckets=BATCHES, registry=self._registry)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        page: bytes = self._write(self._registry)
        return page
