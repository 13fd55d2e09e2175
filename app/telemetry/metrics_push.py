"""The same numbers that Prometheus reads, exported by OTLP now and then."""

from __future__ import annotations

import threading

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

from app.telemetry.logs import get_logger
from app.telemetry.metrics import Metrics

log = get_logger(__name__)


class MetricsPush:
    """Exports the metrics of one replica from a thread of its own.

    In place of the SDK's reader for that: a second reader would count everything twice.

    Args:
        every_s: how often.
    """

    def __init__(self, metrics: Metrics, every_s: float) -> None:
        self._metrics = metrics
        self._every_s = every_s
        self._exporter = OTLPMetricExporter()
        self._closed = threading.Event()
        self._exporting = threading.Lock()
        threading.Thread(target=self._work, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Export for the last time; blocks until that is done, or has failed."""
        self._closed.set()
        self._export()
        self._exporter.shutdown()  # pyright: ignore[reportUnknownMemberType]

    def _work(self) -> None:
        while not self._closed.wait(self._every_s):
            self._export()

    def _export(self) -> None:
        with self._exporting:
            try:
                self._exporter.export(self._metrics.collected())  # pyright: ignore[reportUnknownMemberType]
            except Exception:
                log.exception("metrics_not_exported")
