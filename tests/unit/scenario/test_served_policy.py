"""From each kind of policy to what a gateway routes by."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prfaas.core.control.events import EngineSeen, NodeSeen
from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.control.view import thresholds_now
from prfaas.core.planning.plan import make_plan
from prfaas.deployment.document import DeploymentError
from prfaas.deployment.load import load_deployment, read_deployment
from prfaas.deployment.topology import topology_of
from prfaas.scenario.build import build_scenario
from prfaas.scenario.served_policy import ServedPolicy, planning_problems, routing_threshold


def endpoints(count: int, host: str) -> str:
    all_of = (
        f"{{engine: 'http://{host}{n}:1', kvnode: 'http://{host}{n}:2', lanes: '{host}{n}:3'}}" for n in range(count)
    )
    return f"[{', '.join(all_of)}]"


GOOD = f"""\
model: {{name: m, path: m, max_model_tokens: 131072, profile: internal-1t-hybrid}}
clusters:
  east: {{role: pd, accelerator: h20, endpoints: {endpoints(8, "e")}}}
  west: {{role: prfaas, accelerator: h200, endpoints: {endpoints(4, "w")}}}
links:
  - {{from: west, to: east, bandwidth: 100Gbps}}
workload:
  input_tokens: {{lognormal: {{mu: 9.9, sigma: 1.0, min: 128, max: 131072}}}}
  output_tokens: 1024
slo: {{tpot: 25ms}}
policy: {{kind: KIND}}
"""


def served(folder: Path, kind: str, text: str = GOOD) -> ServedPolicy:
    file = folder / "d.yaml"
    file.write_text(text.replace("KIND", kind), encoding="utf-8")
    return routing_threshold(load_deployment(file), file)


def test_what_needs_no_plan_is_said_at_once(tmp_path: Path) -> None:
    """Always over a threshold, never, and always."""
    fixed = served(tmp_path, "fixed, routing_threshold_tokens: 700")
    assert (fixed.offload, fixed.threshold_tokens) == (True, 700)
    assert not served(tmp_path, "homogeneous").offload
    naive = served(tmp_path, "naive")
    assert (naive.offload, naive.threshold_tokens) == (True, 0)


def test_the_threshold_that_is_served_is_the_planned_one(tmp_path: Path) -> None:
    """As `prfaas plan` prints it for the same file."""
    found = served(tmp_path, "prfaas")
    plan = make_plan(build_scenario(tmp_path / "d.yaml"))
    assert found.offload
    assert found.threshold_tokens == plan.to_json()["routing_threshold_tokens"]
    assert str(found.threshold_tokens) in found.why


def test_a_link_that_brings_nothing_is_not_used(tmp_path: Path) -> None:
    """As planned and, by the same figures, as long as the link carries no more."""
    found = served(tmp_path, "prfaas", GOOD.replace("100Gbps", "1Mbps"))
    assert "0.0% of requests" in found.why
    assert found.model is not None
    topology = topology_of(load_deployment(tmp_path / "d.yaml"))
    scheduler = Scheduler(topology, RoutePolicy(True, found.threshold_tokens, found.model), TransferTerms(60.0, 30.0))
    for instance in topology.instances:
        scheduler.handle(EngineSeen(instance.name, True), 0.0)
        scheduler.handle(NodeSeen(instance.name, True), 0.0)
    assert scheduler.dispatch is not None
    assert thresholds_now(scheduler.fleet, scheduler.dispatch, 0.0) == {"west": None}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (", accelerator: h20,", ",", "d.yaml:3: clusters.east: planning needs the hardware"),
        (", bandwidth: 100Gbps", "", "d.yaml:6: links.0.bandwidth: missing; planning needs it"),
        ("  output_tokens: 1024\n", "", "d.yaml:7: workload.output_tokens: missing"),
        ("profile: internal-1t-hybrid", "profile: none-such", "d.yaml:1: model.profile: "),
    ],
)
def test_what_a_plan_would_need_is_told_with_its_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    """The gateway does not start, and `config check` says the same."""
    assert old in GOOD
    with pytest.raises(DeploymentError) as caught:
        served(tmp_path, "prfaas", GOOD.replace(old, new))
    assert expected in str(caught.value)
    problems = planning_problems(*read_deployment(tmp_path / "d.yaml"))
    assert problems == str(caught.value).splitlines()


def test_without_a_file_there_is_no_plan(tmp_path: Path) -> None:
    """Whoever serves a deployment that was never written gives a threshold."""
    served(tmp_path, "prfaas")
    with pytest.raises(DeploymentError, match="planned from a file"):
        routing_threshold(load_deployment(tmp_path / "d.yaml"), None)


def test_other_kinds_load_neither_planning_nor_numpy() -> None:
    """A gateway starts quickly."""
    program = """
import sys
import prfaas.gateway.server, prfaas.scenario.served_policy as p
from prfaas.deployment.model import Deployment
d = Deployment.model_validate({"model": {}, "clusters": {"a": {"role": "pd"}}, "policy": {"kind": "fixed"}})
assert p.routing_threshold(d, None).offload
loaded = [name for name in sys.modules if name.split(".")[0] in ("numpy", "highspy", "yaml") or "planning" in name]
sys.exit(str(loaded) if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
