"""What can be harmed is what `prfaas up` runs, under the names that it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from prfaas.chaos.faults import BadFault
from prfaas.chaos.site import Site, menu_of, refuse_without_gateway, site_of
from prfaas.deployment.load import load_deployment, resolve_model_dir
from prfaas.deployment.topology import topology_of
from prfaas.launch.plan import plan_processes
from prfaas.launch.state_file import NotUp, ProcessState, UpState
from prfaas.testing.up_site import harmed_document


def site(folder: Path, document: dict[str, Any], *, with_gateway: bool = True, with_wan: bool = True) -> Site:
    """As if `prfaas up` ran what it plans."""
    file = folder / "deployment.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    deployment = load_deployment(file)
    model_dir = resolve_model_dir(deployment, file)
    specs = plan_processes(deployment, file, model_dir, folder, with_gateway=with_gateway)
    processes = {
        spec.name: ProcessState(1, spec.argv, spec.health_url) for spec in specs if with_wan or spec.name != "wan"
    }
    state = UpState(str(file), 1, True, processes)
    topology = topology_of(deployment)
    return Site(file, folder, deployment, None, topology, menu_of(deployment, topology, state))  # type: ignore[arg-type]


def test_every_engine_has_its_process(tmp_path: Path) -> None:
    """Apart, or all of a cluster together; the emulated network itself is not on the menu."""
    names = ["west-0", "east-0", "east-1", "east-2", "east-3"]
    apart = site(tmp_path, harmed_document()).menu
    assert apart.engines == {f"engine-{name}": (name,) for name in names}
    assert apart.nodes == tuple(f"kvnode-{name}" for name in names)
    assert (apart.has_gateway, apart.decoders, apart.links) == (True, ("east-2", "east-3"), (("west", "east"),))
    assert apart.named("east") == tuple(f"engine-{name}" for name in names[1:])
    assert "wan" not in apart.processes
    document = harmed_document()
    document["emulation"]["process_for"] = "cluster"
    together = site(tmp_path, document).menu
    assert together.engines == {"engines-west": ("west-0",), "engines-east": tuple(names[1:])}
    assert together.named("east-3") == ("engines-east",)


def test_what_does_not_run_here_is_not_harmed(tmp_path: Path) -> None:
    """Links that nobody emulates, a gateway that runs elsewhere, a deployment that is not up."""
    found = site(tmp_path, harmed_document(), with_gateway=False, with_wan=False)
    assert (found.menu.links, found.menu.has_gateway) == ((), False)
    assert not [line for line in found.menu.lines() if "gateway" in line or line.startswith(("cut", "slow", "flip"))]
    with pytest.raises(BadFault, match="without its gateway"):
        refuse_without_gateway(found)
    with pytest.raises(NotUp):
        site_of(found.file, tmp_path)
