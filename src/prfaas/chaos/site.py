"""The deployment that is harmed: its file, its processes on this machine, and how they are reached."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from prfaas.chaos.faults import GATEWAY, BadFault, Menu
from prfaas.core.topology import Topology
from prfaas.deployment.document import Document
from prfaas.deployment.fronts import Address, control_address, emulated_links
from prfaas.deployment.load import read_deployment
from prfaas.deployment.model import Deployment
from prfaas.deployment.topology import topology_of
from prfaas.launch.state_file import UpState, read_state

#: Names as `launch.plan` gives them.
_ENGINES, _ENGINE, _NODE = "engines-", "engine-", "kvnode-"


@dataclass(frozen=True, slots=True)
class Site:
    """What `prfaas up FILE` runs, with its logs in `logs`."""

    file: Path
    logs: Path
    deployment: Deployment
    document: Document
    topology: Topology
    menu: Menu

    @property
    def gateway_url(self) -> str:
        settings = self.deployment.gateway
        return f"http://{_reached(settings.host)}:{settings.port}"

    @property
    def control(self) -> Address | None:
        """Of `prfaas wan`."""
        return control_address(self.deployment)

    def state(self) -> UpState:
        """As it is now. Raises NotUp."""
        return read_state(self.logs, self.file)


def site_of(file: Path, logs: Path) -> Site:
    """Raises DeploymentError or NotUp."""
    deployment, document = read_deployment(file)
    topology = topology_of(deployment)
    state = read_state(logs, file)
    return Site(file, logs, deployment, document, topology, menu_of(deployment, topology, state))


def menu_of(deployment: Deployment, topology: Topology, state: UpState) -> Menu:
    """Of what runs under `prfaas up` here. Without the emulated network itself, which is no part of what is tested."""
    clusters: dict[str, list[str]] = {}
    for instance in topology.instances:
        clusters.setdefault(instance.cluster, []).append(instance.name)
    engines: dict[str, tuple[str, ...]] = {}
    for name in state.processes:
        if name.startswith(_ENGINES):
            engines[name] = tuple(clusters.get(name.removeprefix(_ENGINES), ()))
        elif name.startswith(_ENGINE):
            engines[name] = (name.removeprefix(_ENGINE),)
    links = tuple((link.source, link.target) for link in emulated_links(deployment) if link.fronts)
    return Menu(
        engines=engines,
        nodes=tuple(name for name in state.processes if name.startswith(_NODE)),
        has_gateway=GATEWAY in state.processes,
        clusters={name: tuple(members) for name, members in clusters.items()},
        decoders=tuple(instance.name for instance in topology.instances if instance.duty.decodes),
        links=links if "wan" in state.processes else (),
    )


def refuse_without_gateway(site: Site) -> None:
    """Raises BadFault: there is nobody to send requests to."""
    if not site.menu.has_gateway:
        raise BadFault("'prfaas up' runs without its gateway here; start it with the gateway")


def _reached(host: str) -> str:
    """Of this machine, where somebody listens everywhere."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    text = "127.0.0.1" if address.is_unspecified else host
    return f"[{text}]" if ":" in text else text
