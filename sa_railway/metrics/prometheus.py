"""The metrics for Prometheus, through its own client: the sum of all processes that share them.

``expose()`` adds them to a registry that an application has already; ``render()`` is a whole page.
Whichever process is asked, the answer is the same.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from sa_railway.metrics.counters import read_all
from sa_railway.metrics.definitions import BOUNDS, FAILURES, FIELDS, OUTCOMES, bucket_fields, gauges

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.multiprocess import MultiProcessCollector
except ImportError as error:
    error.add_note('sa_railway: install it with pip install "sa-railway[prometheus]"')
    raise

__all__ = ["expose", "render"]

# by the name after sa_railway_: what it is, and the field that it is read from
_COUNTERS = {
    "queries": "Statements executed, those that failed included",
    "failed_checkouts": "Checkouts that ended with an error: no server, or no connection free",
    "reconnections": "Connections made in place of one that was lost",
    "rollbacks": "Transactions rolled back, as a statement failed or nothing committed them",
    "pool_resets": "Times that all connections of a pool were given up, because one was found dead",
    "stale_connections": "Pooled connections found dead at checkout",
    "retries": "Attempts that retry() has made again",
    "replays": "Transactions that run_transaction() has run again",
    "breaker_openings": "Times that connecting began to fail at once, as the server stayed away",
    "leaks": "Connections held for longer than leak_after",
}
_GAUGES = {
    "size": "Connections that the pools keep",
    "limit": "Connections that the pools may have open at most; +Inf is no limit",
    "open": "Connections that are open",
    "checked_out": "Connections that are in use",
    "overflow": "Connections open beyond the size of the pools",
    "waiting": "Checkouts under way: waiting for a free connection or for a new one",
}
_HISTOGRAMS = {
    "connect": "Time to open a connection, with all attempts",
    "checkout_wait": "Time that a checkout took",
    "hold": "Time from a checkout to the return of the connection",
}

_exposed: weakref.WeakSet[CollectorRegistry] = weakref.WeakSet()


def expose(registry: CollectorRegistry = REGISTRY) -> None:
    """Add the metrics to *registry*, for an application that shows its metrics by itself.

    In multiprocess mode that is the registry which the application makes for a
    ``MultiProcessCollector``. May be called twice.
    """
    if registry not in _exposed:
        registry.register(_collector)
        _exposed.add(registry)


def render(accept: str = "") -> tuple[str, bytes]:
    """Return a page of metrics: the application's own, and those of all engines.

    The application's own are those of ``prometheus_client``: of all processes if the environment
    variable ``PROMETHEUS_MULTIPROC_DIR`` is set, which its multiprocess mode needs, else of this
    one. Those of the engines do not need it where the processes are forked from one.

    Args:
        accept: the header Accept of the request, for the format.

    Returns:
        the content type, and the body.

    Raises:
        ValueError: ``PROMETHEUS_MULTIPROC_DIR`` is no directory.
    """
    encoder, content_type = choose_encoder(accept)
    return content_type, encoder(_registry())


def _registry() -> CollectorRegistry:
    is_multiprocess = bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
    if REGISTRY in _exposed and not is_multiprocess:
        return REGISTRY
    registry = CollectorRegistry()
    registry.register(_ProcessesCollector(None) if is_multiprocess else REGISTRY)  # type: ignore[no-untyped-call]
    registry.register(_collector)
    return registry


class _ProcessesCollector(MultiProcessCollector):
    """Reads what the client has kept of all processes, but for files that have nothing in them yet.

    A process makes its file empty first, and one that is killed just then leaves it so.
    """

    def collect(self) -> Iterable[Metric]:
        folder = os.environ["PROMETHEUS_MULTIPROC_DIR"]
        with os.scandir(folder) as entries:
            files = [e.path for e in entries if e.name.endswith(".db") and _is_filled(e)]
        return self.merge(files)  # type: ignore[no-any-return, no-untyped-call]


def _is_filled(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(FileNotFoundError):  # of a process that has died meanwhile
        return entry.stat().st_size > 0
    return False


class _Collector:
    """Reads the numbers of all processes when Prometheus asks."""

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without their values: by their names a registry finds duplicates."""
        return _metrics({})

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their values."""
        return _metrics(_sums())


_collector = _Collector()


def _sums() -> dict[str, dict[str, float]]:
    """Return the values of all processes together, by the label of the engine and the field."""
    sums: dict[str, dict[str, float]] = {}
    for block in read_all():
        values = dict(zip(FIELDS, block.values, strict=True))
        now = gauges(block.values)
        values |= now if block.is_alive else dict.fromkeys(now, 0.0)
        sum_of_engine = sums.setdefault(block.name, defaultdict(float))
        for name, value in values.items():
            sum_of_engine[name] += value
    return sums


def _metrics(sums: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    for field, text in _COUNTERS.items():
        yield _counter(field, text, sums)
    yield _labelled_counter(
        "query_failures",
        "Statements that failed, other than by violating a constraint",
        "kind",
        FAILURES,
        sums,
    )
    yield _labelled_counter(
        "commits_resolved",
        "Commits whose answer was lost, by what became of them",
        "outcome",
        OUTCOMES,
        sums,
    )
    for field, text in _GAUGES.items():
        gauge = GaugeMetricFamily(f"sa_railway_pool_{field}", text, labels=["engine"])
        for engine, values in sums.items():
            gauge.add_metric([engine], values[field])
        yield gauge
    for name, text in _HISTOGRAMS.items():
        yield _histogram(name, text, sums)


def _counter(field: str, text: str, sums: Mapping[str, Mapping[str, float]]) -> Metric:
    counter = CounterMetricFamily(f"sa_railway_{field}", text, labels=["engine"])
    for engine, values in sums.items():
        counter.add_metric([engine], values[field])
    return counter


def _labelled_counter(
    name: str,
    text: str,
    label: str,
    fields: Mapping[str, str],
    sums: Mapping[str, Mapping[str, float]],
) -> Metric:
    counter = CounterMetricFamily(f"sa_railway_{name}", text, labels=["engine", label])
    for engine, values in sums.items():
        for value, field in fields.items():
            counter.add_metric([engine, value], values[field])
    return counter


def _histogram(name: str, text: str, sums: Mapping[str, Mapping[str, float]]) -> Metric:
    histogram = HistogramMetricFamily(f"sa_railway_{name}_seconds", text, labels=["engine"])
    bounds = [*(str(float(bound)) for bound in BOUNDS), "+Inf"]
    for engine, values in sums.items():
        up_to = itertools.accumulate(values[bucket] for bucket in bucket_fields(name))
        buckets = list(zip(bounds, up_to, strict=True))
        histogram.add_metric([engine], buckets, sum_value=values[f"{name}_sum"])
    return histogram
