"""Topologies and prompts of a world."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.model.curve import polynomial
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.topology import Cluster, Duty, Instance, Role, Topology, complete_links

MAX_PROMPT_TOKENS: Final = 8_192
NUM_FAMILIES: Final = 12
BLOCK_SIZES: Final = (256, 512)

_CLUSTERS: Final = (Cluster("west", Role.PRFAAS), Cluster("pd", Role.PD, is_convertible=True))
_BLOCKS: Final = {
    (family, size): tuple(f"{family}/{size}/{index}".encode() for index in range(MAX_PROMPT_TOKENS // size))
    for family in range(NUM_FAMILIES)
    for size in BLOCK_SIZES
}


def chains(family: int, num_tokens: int, block_sizes: tuple[int, ...]) -> dict[int, TokenChain]:
    """Prompts of one family are prefixes of each other."""
    return {size: TokenChain(num_tokens, size, _BLOCKS[family, size][: num_tokens // size]) for size in block_sizes}


def member(name: str, duty: Duty) -> Instance:
    """Names that begin with `west` stand in the PrfaaS cluster."""
    cluster = "west" if name.startswith("west") else "pd"
    return Instance(name, cluster, duty, f"http://{name}.0", f"http://node.{name}.0", f"{name}:0")


def moved(instance: Instance, number: int) -> Instance:
    """The same name at another place."""
    name = instance.name
    return replace(instance, engine_url=f"http://{name}.{number}", kvnode_url=f"http://node.{name}.{number}")


def topology(members: tuple[Instance, ...]) -> Topology:
    return Topology(_CLUSTERS, members, complete_links(_CLUSTERS, ()))


#: What the control core is told of the times here, wherever it may choose by them. They are not what they will be.
MODEL: Final = ServingModel(
    {"west": ClusterModel(polynomial(0.1, 1e-4)), "pd": ClusterModel(polynomial(0.2, 1e-3), 16, 0.01)},
    kv_bytes=polynomial(0.0, 100.0),
    output_tokens=50.0,
)
#: Where a world begins: instances that do both; instances that only decode beside one that prefills; a mixture.
BEGINNINGS: Final = (
    (("west-0", Duty.PREFILL), ("west-1", Duty.PREFILL), ("pd-0", Duty.BOTH), ("pd-1", Duty.BOTH)),
    (("west-0", Duty.PREFILL), ("pd-0", Duty.DECODE), ("pd-1", Duty.DECODE), ("pd-2", Duty.PREFILL)),
    (("west-0", Duty.PREFILL), ("pd-0", Duty.BOTH), ("pd-1", Duty.DECODE), ("pd-2", Duty.PREFILL),
     ("pd-3", Duty.BOTH)),
    (("west-0", Duty.PREFILL), ("west-1", Duty.PREFILL), ("pd-0", Duty.BOTH)),
    (("pd-0", Duty.DECODE), ("pd-1", Duty.BOTH), ("pd-2", Duty.PREFILL), ("pd-3", Duty.PREFILL)),
)  # fmt: skip
#: Who may join.
NEWCOMERS: Final = (
    ("west-2", Duty.PREFILL),
    ("pd-7", Duty.BOTH),
    ("pd-4", Duty.BOTH),
    ("pd-5", Duty.DECODE),
    ("pd-6", Duty.PREFILL),
)
