"""The same numbers that Prometheus reads, exported by OTLP now and then."""

from __future__ import annotations

import threading

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

from app.telemetry.logs import get_logger
from app.telemetry.metrics import Metrics
from app.telemetry.otlp import Destination, OtlpSender
from app.telemetry.recurring import Recurring
from app.telemetry.span_queue import TOLD_EVERY_S

log = get_logger(__name__)


class MetricsPush:
    """Exports the metrics of one replica from a thread of its own.

    In place of the SDK's reader for that: a second reader would count everything twice.

    Args:
        every_s: how often.
    """

    def __init__(self, metrics: Metrics, every_s: float, to: Destination) -> None:
        self._metrics = metrics
        self._every_s = every_s
        self._sender = OtlpSender(to)
        self._failures = Recurring(log, "metrics_not_exported", every_s=TOLD_EVERY_S)
        self._closed = threading.Event()
        self._exporting = threading.Lock()
        threading.Thread(target=self._work, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Export for the last time; blocks until that is done, or has failed."""
        self._closed.set()
        self._export()

    def _work(self) -> None:
        while not self._closed.wait(self._every_s):
            self._export()

    def _export(self) -> None:
        with self._exporting:
            try:
                reason = self._sender.send(encode_metrics(self._metrics.collected()).SerializeToString())
            except Exception:
                log.exception("metrics_not_exported")
                return
        if reason is not None:
            self._failures.failed(reason, reason=reason)
