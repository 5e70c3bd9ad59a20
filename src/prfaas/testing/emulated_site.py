"""A deployment of emulated engines: real processes, nodes, lanes and KVCache, without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from prfaas.launch.readiness import not_ready
from prfaas.testing.deployed import Deployed, endpoint, free_ports, http
from prfaas.testing.node_pair import wait_until

MODEL_NAME: Final = "emulated"


def emulated_document(
    *,
    num_prfaas: int = 1,
    num_prefill: int = 1,
    num_decode: int = 1,
    policy: dict[str, Any] | None = None,
    emulation: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The case study's model and hardware on this machine, in clusters west (PrfaaS) and east (PD). Without instances
    that only prefill, those of east do both."""
    duties = ["prefill"] * num_prefill + (["decode"] if num_prefill else ["both"]) * num_decode
    ports = free_ports(3 * (num_prfaas + len(duties)) + 1)
    groups = [ports[index : index + 3] for index in range(0, len(ports) - 1, 3)]
    west = [endpoint(groups.pop(), kind="emulated") for _ in range(num_prfaas)]
    east = [endpoint(groups.pop(), kind="emulated", duty=duty) for duty in duties]
    engine = {"kind": "emulated"}
    return {
        "model": {"name": MODEL_NAME, "profile": "internal-1t-hybrid", "max_model_tokens": 140_000},
        "emulation": {"time_scale": 0.05, "bytes_scale": 0.001, **(emulation or {})},
        "clusters": {
            "west": {"role": "prfaas", "accelerator": "h200", "engine": engine, "endpoints": west},
            "east": {"role": "pd", "accelerator": "h20", "engine": engine, "endpoints": east},
        },
        "links": [{"from": "west", "to": "east", "bandwidth": "100Gbps"}],
        "workload": {
            "input_tokens": {"lognormal": {"mu": 9.9, "sigma": 1.0, "min": 128, "max": 131_072}}, "output_tokens": 1024,
        },
        "slo": {"tpot": "25ms"},
        "policy": policy or {"kind": "fixed", "routing_threshold_tokens": 1000},
        "transfer": {"lanes": 1, "arena": "64MiB", "deadline": "20s", "lease": "20s"},
        "gateway": {"port": ports[-1]},
        **more,
    }  # fmt: skip


@dataclass(frozen=True)
class Answered:
    """`headers` have lower-case names."""

    text: str
    headers: dict[str, str]
    usage: dict[str, Any]

    @property
    def route(self) -> str:
        return self.headers["x-prfaas-route"]


class EmulatedSite(Deployed):
    """Of an `emulated_document`."""

    def wait_ready(self) -> None:
        """Until the gateway sees every instance and every lane."""
        wait_until(self._all_ready, 60.0)

    def _all_ready(self) -> bool:
        instances = self.topology.instances
        nodes = {instance.name: http(f"{instance.kvnode_url}/health")[0] for instance in instances}
        return not not_ready({"instances": self.members()}, nodes)

    def ask(self, prompt: list[int] | str, max_tokens: int = 8, url: str | None = None, **extra: Any) -> Answered:
        """At the gateway unless `url` is an engine's. Raises HttpError."""
        body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": max_tokens, **extra}
        reply, headers = http(f"{url or self.gateway}/v1/completions", body)
        names = {name.lower(): value for name, value in headers.items()}
        return Answered(reply["choices"][0]["text"], names, reply["usage"])

    def scheduler(self) -> dict[str, Any]:
        """What the gateway's scheduler knows."""
        return dict(http(f"{self.gateway}/prfaas/scheduler")[0])

    def num_wrong(self) -> int:
        """Pages and states of KVCache that any engine found wrong."""
        urls = (instance.engine_url for instance in self.topology.instances)
        return sum(round(self.metric(url, "prfaas_emulated_wrong_parts_total")) for url in urls)

    def engine(self, name: str) -> str:
        """Base URL of an instance's engine."""
        return self.instance(name).engine_url
