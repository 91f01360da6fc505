"""Numbers of a service for Prometheus, by its own client."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of buckets for durations."""
IMAGES = (1, 2, 4, 8, 16)
"""Upper bounds of buckets for the images of a batch."""

disable_created_metrics()


class Metrics:
    """Counts and distributions; any thread may add to them.

    Attributes:
        requests: by route and status.
        request_seconds: from the request to its answer, by route.
        images: that were looked at, by task.
        batch_images: images that were looked at together.
        batch_seconds: in the detector, by batch.
    """

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Start at zero.

        Args:
            gauges: name → explanation, and a function that returns the present value.
        """
        self._registry = own = CollectorRegistry()
        self.requests = Counter("glip_adapt_requests", "Requests.", ["route", "status"], registry=own)
        self.request_seconds = Histogram(
            "glip_adapt_request_seconds", "From the request to its answer.", ["route"], buckets=SECONDS, registry=own
        )
        self.images = Counter("glip_adapt_images", "Images that were looked at.", ["task"], registry=own)
        self.batch_images = Histogram(
            "glip_adapt_batch_images", "Images that were looked at together.", buckets=IMAGES, registry=own
        )
        self.batch_seconds = Histogram(
            "glip_adapt_batch_seconds", "In the detector, by batch.", buckets=SECONDS, registry=own
        )
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=own).set_function(value)

    def text(self) -> bytes:
        """Return all numbers as Prometheus reads them."""
        return generate_latest(self._registry)
