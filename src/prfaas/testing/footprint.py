"""What running processes take: memory, descriptors, threads, tasks, and what they hold of requests.

Laws of this file:
- Memory is a process's own anonymous pages: its heaps and stacks. Arenas are shared files and are not in it; code is
  neither.
- A process whose figures cannot be read is an error, not a zero.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prfaas.core.topology import Topology
from prfaas.testing.deployed import Deployed, http

#: By the begin of a process's name under `prfaas up`: its gauge of tasks.
_TASKS: Final = {
    "gateway": "prfaas_gateway_tasks", "kvnode-": "prfaas_node_tasks", "engines-": "prfaas_emulated_tasks",
    "wan": "prfaas_wan_tasks",
}  # fmt: skip
#: Gauges of what is held of requests that go on; all are 0 when there are none.
_HELD: Final = {
    "gateway": ("prfaas_gateway_entries", "prfaas_inflight_requests", "prfaas_inflight_bytes"),
    "kvnode-": ("prfaas_landings", "prfaas_stagings", "prfaas_link_transfers", "prfaas_link_queued_bytes"),
    "engines-": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    "wan": ("prfaas_wan_held_bytes",),
}
#: What ended and is remembered, up to a bound.
_REMEMBERED: Final = 'table="ended_stories"'
#: Bounded tables that fill up: how many entries there are.
_BOUNDED: Final = {
    "gateway": ("prfaas_prefix_record_blocks",),
    "kvnode-": ("prfaas_node_records",),
    "engines-": (),
    "wan": (),
}
_SAMPLE: Final = re.compile(r"^([a-zA-Z_:]+)(\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Footprint:
    """One process at one moment. `num_held`: of requests that go on. `num_remembered`: entries of tables that fill up
    to a bound."""

    heap_bytes: int
    num_descriptors: int
    num_threads: int
    num_tasks: int
    num_held: int
    num_remembered: int


def heap_bytes(pid: int) -> int:
    """Anonymous pages, those that were swapped out too."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.findall(r"^(?:Anonymous|Swap):\s+(\d+) kB$", text, re.MULTILINE)
    return 1024 * sum(map(int, found))


def cpu_s(pid: int) -> float:
    """User and system time since it began."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def num_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def num_threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def samples_of(url: str) -> list[tuple[str, str, float]]:
    """Name, labels and value of each sample of a process's metrics."""
    text, _ = http(f"{url}/metrics", timeout_s=30.0)
    return [(name, labels, float(value)) for name, labels, value in _SAMPLE.findall(str(text))]


def footprints(site: Deployed) -> dict[str, Footprint]:
    """Of every process of a deployment, by its name. Raises OSError for one that is gone or does not answer."""
    urls = urls_of(site)
    return {name: _footprint(name, running.pid, urls[name]) for name, running in site.supervisor.processes.items()}


def urls_of(site: Deployed) -> dict[str, list[str]]:
    """Where each process shows its metrics: several for one that serves several engines."""
    topology = site.topology
    return {name: list(_urls(name, site, topology)) for name in site.supervisor.processes}


def _urls(name: str, site: Deployed, topology: Topology) -> Iterator[str]:
    if name == "gateway":
        yield site.gateway
    elif name == "wan":
        yield str(site.specs["wan"].health_url).removesuffix("/health")
    for instance in topology.instances:
        if name == f"kvnode-{instance.name}":
            yield instance.kvnode_url
        elif name == f"engines-{instance.cluster}":
            yield instance.engine_url


def _footprint(name: str, pid: int, urls: Sequence[str]) -> Footprint:
    kind = next(kind for kind in _TASKS if name.startswith(kind))
    samples = [samples_of(url) for url in urls]
    tasks = [value for sample in samples for metric, _, value in sample if metric == _TASKS[kind]]
    flat = [one for sample in samples for one in sample]
    held = sum(value for metric, labels, value in flat if metric in _HELD[kind] and _REMEMBERED not in labels)
    remembered = sum(value for metric, labels, value in flat if metric in _BOUNDED[kind] or _REMEMBERED in labels)
    return Footprint(
        heap_bytes(pid), num_descriptors(pid), num_threads(pid), int(max(tasks)), int(held), int(remembered)
    )


def grown(
    before: Mapping[str, Footprint], after: Mapping[str, Footprint], spare: int
) -> dict[str, dict[str, tuple[int, int]]]:
    """By process and figure, (before, after) of every count that is higher now: descriptors, threads and tasks by more
    than `spare`, since probes keep up to three idle connections to each process alive; what is held by any number."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name, then in before.items():
        now = after[name]
        for figure in ("num_descriptors", "num_threads", "num_tasks", "num_held"):
            old, new = getattr(then, figure), getattr(now, figure)
            if new > old + (0 if figure == "num_held" else spare):
                found.setdefault(name, {})[figure] = (old, new)
    return found
