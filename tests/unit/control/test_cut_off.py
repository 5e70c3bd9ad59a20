"""What is known of instances when the topology changes."""

from __future__ import annotations

from prfaas.core.control.events import NodeSeen, TopologyChanged
from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.topology import Cluster, Duty, Instance, Role, Topology, complete_links

CLUSTERS = (Cluster("west", Role.PRFAAS), Cluster("east", Role.PD))


def instance(name: str, duty: Duty, *, port: int = 1) -> Instance:
    cluster = "west" if name.startswith("w") else "east"
    return Instance(name, cluster, duty, f"http://{name}:{port}", f"http://{name}:{port + 1}", f"{name}:{port + 2}")


def topology(*instances: Instance) -> Topology:
    return Topology(CLUSTERS, instances, complete_links(CLUSTERS, ()))


WEST, FIRST, SECOND = (
    instance("west", Duty.PREFILL),
    instance("first", Duty.DECODE),
    instance("second", Duty.DECODE),
)


def scheduler_of(*instances: Instance) -> Scheduler:
    """All nodes have said that their lanes are up."""
    scheduler = Scheduler(topology(*instances), RoutePolicy(True, 100), TransferTerms(60.0, 30.0))
    for one in instances:
        scheduler.handle(NodeSeen(one.name, has_engine=True), 0.0)
    return scheduler


def cut_off(scheduler: Scheduler, name: str) -> frozenset[str]:
    return scheduler.fleet.instances[name].cut_off_from


def change(scheduler: Scheduler, *instances: Instance) -> None:
    scheduler.handle(TopologyChanged(topology(*instances)), 1.0)


def test_a_new_receiver_is_cut_off_until_the_sender_has_seen_it() -> None:
    """Its sender may not have read the file yet; those that it knows are not touched."""
    scheduler = scheduler_of(WEST, FIRST)
    change(scheduler, WEST, FIRST, SECOND)
    assert cut_off(scheduler, "west") == {"second"}
    scheduler.handle(NodeSeen("west", has_engine=True), 2.0)
    assert cut_off(scheduler, "west") == frozenset()


def test_a_receiver_that_moves_is_cut_off() -> None:
    """Lanes to its old address are of no use."""
    scheduler = scheduler_of(WEST, FIRST, SECOND)
    change(scheduler, WEST, instance("first", Duty.DECODE, port=10), SECOND)
    assert cut_off(scheduler, "west") == {"first"}


def test_a_converted_instance_is_cut_off() -> None:
    """As a new receiver, and as a new sender; what only stops prefilling for itself is not."""
    scheduler = scheduler_of(WEST, FIRST, SECOND)
    change(scheduler, WEST, instance("first", Duty.PREFILL), instance("second", Duty.BOTH))
    assert cut_off(scheduler, "first") == {"second"}
    assert cut_off(scheduler, "west") == frozenset()
    change(scheduler, WEST, FIRST, SECOND)
    assert cut_off(scheduler, "west") == {"first"}
