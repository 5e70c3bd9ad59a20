"""The kinds of engines, by the name that `endpoints.kind` and `engine.kind` of the deployment file give them."""

from __future__ import annotations

from typing import Final

from prfaas.engines.dialect import Dialect
from prfaas.engines.emulated.dialect import EmulatedDialect
from prfaas.engines.emulated.launch import EmulatedLaunch
from prfaas.engines.launch import Launch
from prfaas.engines.vllm.dialect import VllmDialect
from prfaas.engines.vllm.launch import VllmLaunch

DEFAULT_KIND: Final = "vllm"

_DIALECTS: Final[dict[str, Dialect]] = {"vllm": VllmDialect(), "emulated": EmulatedDialect()}
_LAUNCHES: Final[dict[str, Launch]] = {"vllm": VllmLaunch(), "emulated": EmulatedLaunch()}

#: Steering fields and containers of engines that have no dialect here yet (SGLang, Dynamo).
_OTHER_FIELDS: Final = frozenset(
    {
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "bootstrap_pair_key",
        "routed_dp_rank",
        "disagg_prefill_dp_rank",
    }
)
_OTHER_CONTAINERS: Final = frozenset({"custom_params"})

#: What is taken out of every request, of all kinds together: behind an endpoint may stand a proxy for another engine.
STEERING_FIELDS: Final = _OTHER_FIELDS.union(*(dialect.steering_fields for dialect in _DIALECTS.values()))
STEERING_CONTAINERS: Final = _OTHER_CONTAINERS.union(*(dialect.steering_containers for dialect in _DIALECTS.values()))


def dialect_of(kind: str) -> Dialect:
    """Raises KeyError for a kind that the deployment file does not allow."""
    return _DIALECTS[kind]


def launch_of(kind: str) -> Launch:
    """Raises KeyError for a kind that the deployment file does not allow."""
    return _LAUNCHES[kind]
