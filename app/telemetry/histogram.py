"""A histogram that takes a microsecond to record in; the SDK's takes ten, and there are several for each model call."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time_ns

from opentelemetry.sdk.metrics.export import AggregationTemporality, HistogramDataPoint, Metric
from opentelemetry.sdk.metrics.export import Histogram as HistogramData

_NO_LABELS: Mapping[str, str] = {}


@dataclass(slots=True)
class _Series:
    labels: Mapping[str, str]
    counts: list[int]
    sum: float = 0.0
    min: float = float("inf")
    max: float = float("-inf")


class Histogram:
    """Counts values by bucket, for each set of labels. To be recorded in by one thread.

    Args:
        unit: as OpenTelemetry writes units, such as `s`.
        bounds: the upper bounds of the buckets, each inclusive; above them there is one more.
    """

    def __init__(self, name: str, unit: str, description: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._unit = unit
        self._description = description
        self._bounds = bounds
        self._since = time_ns()
        self._series: dict[int, _Series] = {}

    def record(self, value: float, labels: Mapping[str, str] = _NO_LABELS) -> None:
        """Count a value.

        Args:
            labels: the same object each time, for the same labels.
        """
        series = self._series.get(id(labels))
        if series is None:
            series = self._series[id(labels)] = _Series(labels, [0] * (len(self._bounds) + 1))
        series.counts[bisect_left(self._bounds, value)] += 1
        series.sum += value
        series.min = min(series.min, value)
        series.max = max(series.max, value)

    def collected(self) -> Metric | None:
        """As an exporter takes it; None while nothing was recorded. From any thread."""
        now = time_ns()
        points = [
            HistogramDataPoint(
                attributes=each.labels,
                start_time_unix_nano=self._since,
                time_unix_nano=now,
                count=sum(counts),
                sum=each.sum,
                bucket_counts=counts,
                explicit_bounds=self._bounds,
                min=each.min,
                max=each.max,
            )
            for each in list(self._series.values())
            for counts in [tuple(each.counts)]
        ]
        if not points:
            return None
        data = HistogramData(points, AggregationTemporality.CUMULATIVE)
        return Metric(self._name, self._description, self._unit, data)
