"""The three deployments of the paper's case study, served on this machine by emulated engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from rich.console import Console

from prfaas.core.topology import Topology
from prfaas.demo.case_study import PRFAAS, case_study_document
from prfaas.demo.started import started
from prfaas.deployment.fronts import control_address
from prfaas.deployment.load import load_deployment
from prfaas.deployment.topology import topology_of

POLICIES: Final = ("prfaas", "homogeneous", "naive")
#: The paper's N_p of its PD cluster (Table 6), and instances that this cluster has.
_PREFILL: Final = {"prfaas": 3, "homogeneous": 9, "naive": 0}
_IN_PD: Final = {"prfaas": 8, "homogeneous": 12, "naive": 8}
READY_TIMEOUT_S: Final = 120.0


def document_of(policy: str, time_scale: float) -> dict[str, Any]:
    """Raises ValueError for a policy that the paper does not have."""
    if policy not in POLICIES:
        raise ValueError(f"{policy}: one of {', '.join(POLICIES)}")
    document = case_study_document(
        num_prefill=_PREFILL[policy], num_pd=_IN_PD[policy], policy={"kind": policy}, time_scale=time_scale
    )
    # Policies of others bind a prompt to an instance when it comes; its landing waits as long as it is queued there.
    document["transfer"] |= {"deadline": "600s", "lease": "600s"}
    if policy == "homogeneous":
        del document["clusters"][PRFAAS], document["links"]
    return document


@dataclass(frozen=True)
class Served:
    """A deployment that is up. Seconds and bytes are those of this machine, not of the profiles."""

    policy: str
    file: Path
    url: str
    wan_url: str | None
    topology: Topology
    pids: tuple[int, ...]

    def scheduler(self) -> dict[str, Any]:
        """As `GET /prfaas/scheduler`."""
        return get_json(f"{self.url}/prfaas/scheduler")

    def carried_bytes(self) -> int:
        """That crossed the link between the clusters since it is there; without one 0."""
        if self.wan_url is None:
            return 0
        (link,) = get_json(f"{self.wan_url}/links")["links"]
        return int(link["carried_bytes"])

    def num_wrong(self) -> int:
        """Pages and states of KVCache that any engine found wrong."""
        return sum(
            int(_metric_sum(one.engine_url, "prfaas_emulated_wrong_parts_total")) for one in self.topology.instances
        )

    def cpu_s(self) -> float:
        """Processor time of all its processes since they began."""
        return sum(map(_cpu_s, self.pids))


@contextmanager
def serving(policy: str, folder: Path, time_scale: float) -> Iterator[Served]:
    """Ready within it: every engine, node and lane."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{policy}.yaml"
    file.write_text(yaml.safe_dump(document_of(policy, time_scale), sort_keys=False))
    deployment = load_deployment(file)
    before = _children()
    with started(deployment, file, folder / "logs", Console(file=open(os.devnull, "w"))):
        control = control_address(deployment)
        served = Served(
            policy, file, f"http://127.0.0.1:{deployment.gateway.port}",
            None if control is None else f"http://{control[0]}:{control[1]}",
            topology_of(deployment), tuple(_children() - before),
        )  # fmt: skip
        _wait_ready(served)
        yield served


def _wait_ready(served: Served) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        with suppress(OSError, ValueError, LookupError):
            if _is_ready(served):
                return
        time.sleep(0.5)
    raise TimeoutError(f"{served.policy}: not every engine, node and lane was up within {READY_TIMEOUT_S:g} s")


def _is_ready(served: Served) -> bool:
    health = get_json(f"{served.url}/health")
    if not all(member["engine"] and member["node"] for member in health["instances"].values()):
        return False
    nodes = [get_json(f"{each.kvnode_url}/health") for each in served.topology.instances]
    return all(peer["lanes_up"] for node in nodes for peer in node["peers"].values())


def prfaas_json(*arguments: str) -> dict[str, Any]:
    """What this command prints. Raises CalledProcessError."""
    command = [sys.executable, "-m", "prfaas", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def get_json(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=10) as response:
        found: dict[str, Any] = json.load(response)
        return found


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _metric_sum(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def _children() -> set[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def _cpu_s(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
