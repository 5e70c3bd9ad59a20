"""Which links of a deployment file `prfaas wan` emulates, and where lanes go because of it. Pure.

Laws of this file:
- A link with `emulated_at` has a *front* per instance of the target cluster, in file order, on ports counting up.
- Who sends over such a link dials fronts. Lanes inside one cluster cross no link and are dialled as ever.
- Control is one port below the lowest front, on this machine only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from prfaas.core.topology import Instance
from prfaas.deployment.document import FieldPath
from prfaas.deployment.model import Deployment, Link
from prfaas.deployment.topology import topology_of

Address = tuple[str, int]

CONTROL_HOST: Final = "127.0.0.1"
_MAX_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class Front:
    """Where lanes to the instance `name` arrive, and where they go on to."""

    name: str
    listen: Address
    target: Address


@dataclass(frozen=True, slots=True)
class EmulatedLink:
    """One direction. Without fronts it is there for its bandwidth: the way back of connections of the other one."""

    source: str
    target: str
    bytes_per_s: float | None
    rtt_s: float
    fronts: tuple[Front, ...]


def emulated_links(deployment: Deployment) -> tuple[EmulatedLink, ...]:
    """Those with `emulated_at`, and those that lead back from there, in file order; in the scale in which the file is
    served."""
    emulated = {(link.from_, link.to) for link in deployment.links if link.emulated_at is not None}
    served = topology_of(deployment)
    found = []
    for link in deployment.links:
        if (link.from_, link.to) in emulated or (link.to, link.from_) in emulated:
            scaled = served.link_between(link.from_, link.to)
            assert scaled is not None, "the topology has every link"
            fronts = _fronts(deployment, link)
            found.append(EmulatedLink(link.from_, link.to, scaled.bytes_per_s, scaled.rtt_s or 0.0, fronts))
    return tuple(found)


def dialled_lanes(deployment: Deployment, sender: Instance, receiver: Instance) -> Address:
    """Where the node of `sender` reaches the lanes of `receiver`."""
    for link in deployment.links:
        if (link.from_, link.to) == (sender.cluster, receiver.cluster):
            front = next((front for front in _fronts(deployment, link) if front.name == receiver.name), None)
            if front is not None:
                return front.listen
    return parse_address(receiver.lanes)


def control_address(deployment: Deployment) -> Address | None:
    """Of `prfaas wan`; None if nothing is emulated."""
    ports = [parse_address(link.emulated_at)[1] for link in deployment.links if link.emulated_at is not None]
    return (CONTROL_HOST, min(ports) - 1) if ports else None


def parse_address(text: str) -> Address:
    """`host:port`."""
    host, _, port = text.rpartition(":")
    return host, int(port)


def emulation_problems(deployment: Deployment, taken: dict[str, str]) -> Iterator[tuple[FieldPath, str]]:
    """What does not fit together. `taken` says who has an address; fronts are added."""
    hosts: dict[str, str] = {}
    for index, link in enumerate(deployment.links):
        if link.emulated_at is None:
            continue
        path: FieldPath = ("links", index, "emulated_at")
        where = f"links.{index}.emulated_at"
        host, first = parse_address(link.emulated_at)
        last = first + max(1, _num_fronts(deployment, link)) - 1
        if link.bandwidth is None:
            yield path, f"{where}: the link has no bandwidth to emulate; add it"
        if not (2 <= first and last <= _MAX_PORT):
            ports = f"ports {first - 1} (control) to {last}" if last > first else f"ports {first - 1} and {first}"
            yield path, f"{where}: {ports} are needed; there are 1 to {_MAX_PORT}"
            continue
        other = next(iter(hosts), host)
        if host != other:
            yield (
                path,
                f"{where}: one process emulates all links, and {hosts[other]} is on {other}; write {other}:{first}",
            )
        hosts.setdefault(host, where)
        yield from _taken_ports(path, where, (host, range(first, last + 1)), taken)
    control = control_address(deployment)
    if control is not None and hosts:
        yield from _taken_control(deployment, control, taken)


def _taken_ports(
    path: FieldPath, where: str, wanted: tuple[str, range], taken: dict[str, str]
) -> Iterator[tuple[FieldPath, str]]:
    host, ports = wanted
    for port in ports:
        address = f"{host}:{port}"
        if address in taken:
            text = f"{address} is taken by {taken[address]}; a link needs a port for each instance of its target"
            yield path, f"{where}: {text}, {len(ports)} from {ports[0]} on"
        taken.setdefault(address, where)


def _taken_control(deployment: Deployment, control: Address, taken: dict[str, str]) -> Iterator[tuple[FieldPath, str]]:
    address = f"{control[0]}:{control[1]}"
    if address in taken:
        index = next(
            index
            for index, link in enumerate(deployment.links)
            if link.emulated_at is not None and parse_address(link.emulated_at)[1] == control[1] + 1
        )
        text = f"{address}, one below, is where `prfaas wan` is controlled, and is taken by {taken[address]}"
        yield ("links", index, "emulated_at"), f"links.{index}.emulated_at: {text}; choose another port"
    taken.setdefault(address, "the control of `prfaas wan`")


def _num_fronts(deployment: Deployment, link: Link) -> int:
    cluster = deployment.clusters.get(link.to)
    return 0 if cluster is None else len(cluster.endpoints)


def _fronts(deployment: Deployment, link: Link) -> tuple[Front, ...]:
    if link.emulated_at is None:
        return ()
    host, first = parse_address(link.emulated_at)
    return tuple(
        Front(endpoint.instance_name(link.to, index), (host, first + index), parse_address(endpoint.lanes))
        for index, endpoint in enumerate(deployment.clusters[link.to].endpoints)
    )
