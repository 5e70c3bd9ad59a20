"""The table of metrics, and the page made from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from prfaas.observe.metrics import TABLE, build, markdown, spec

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_is_current() -> None:
    """Run `python -m prfaas.observe.metrics > docs/metrics.md` if this fails."""
    assert PAGE.read_text(encoding="utf-8") == markdown()


def test_names_follow_the_rules() -> None:
    """Prefix, `_total` for counters only, units in names, no repeated row."""
    assert len({row.name for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert row.name.startswith("prfaas_"), row.name
        assert row.name.endswith("_total") == (row.kind == "counter"), row.name
        assert bool(row.buckets) == (row.kind == "histogram"), row.name
        assert list(row.buckets) == sorted(set(row.buckets)), row.name
        if row.unit in ("seconds", "bytes"):
            assert row.unit in row.name, row.name
        assert not {"request_id", "url", "tenant"} & set(row.labels), row.name


@pytest.mark.parametrize("component", ["gateway", "kvnode", "wan"])
def test_every_metric_of_a_component_is_registered(component: str) -> None:
    """And none of the other's."""
    registry = CollectorRegistry()
    build(registry, component)  # type: ignore[arg-type]
    text = generate_latest(registry).decode()
    for row in TABLE:
        assert (f"# HELP {row.name} " in text) == (row.component == component), row.name


def test_a_name_that_is_not_in_the_table_is_an_error() -> None:
    """Never a silent new metric."""
    metrics = build(CollectorRegistry(), "gateway")
    metrics.counter("prfaas_fallback_total", reason="deadline").inc()
    for name in ("prfaas_fallbacks_total", "prfaas_inflight_requests", "prfaas_lane_bytes_total"):
        with pytest.raises(KeyError):
            metrics.counter(name)
    with pytest.raises(KeyError):
        spec("prfaas_nothing")
    assert spec("prfaas_landings").component == "kvnode"
