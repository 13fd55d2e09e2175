"""Metrics as Prometheus reads them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


class Exposition:
    """A replica's metrics at one moment.

    Args:
        text: in Prometheus' text format.
    """

    def __init__(self, text: bytes) -> None:
        families = text_string_to_metric_families(text.decode())
        self._samples = [(each.name, each.labels, each.value) for family in families for each in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with these labels among theirs."""
        return sum(value for each, has, value in self._samples if each == name and labels.items() <= has.items())

    def values_of(self, label: str) -> set[str]:
        """All values that a label has."""
        return {has[label] for _, has, _ in self._samples if label in has}
