"""The figures of several replicas as those of one server, told apart by a label."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


def merged_figures(texts: Mapping[str, bytes]) -> bytes:
    """Prometheus' text of all replicas, each sample labelled with its replica's name.

    Args:
        texts: the text of each replica by its name.
    """
    families: dict[str, Metric] = {}
    for replica, text in sorted(texts.items()):
        for told in text_string_to_metric_families(text.decode()):
            family = families.setdefault(
                told.name, Metric(told.name, told.documentation, told.type)
            )
            for sample in told.samples:
                labels = {LABEL: replica, **sample.labels}
                family.samples.append(sample._replace(labels=labels))
    return generate_latest(_Families(list(families.values())))


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
