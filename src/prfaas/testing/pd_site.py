"""A PD cluster with instances that prefill and instances that decode, and a PrfaaS instance, on this machine.

`PdSite` has real vLLM engines, `FakePdSite` engines without a model beside the same real nodes and gateway.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prfaas.core.topology import Instance
from prfaas.demo.tiny_models import make_model
from prfaas.launch.plan import ProcessSpec
from prfaas.testing.deployed import Deployed, endpoint, free_ports, http, port_of
from prfaas.testing.gateway_rig import write_tiny_model
from prfaas.testing.node_pair import wait_until
from prfaas.testing.site import CHUNK_TOKENS, ENGINE_ARGS, MODEL_NAME, VllmDeployed, chunks

PRFAAS: Final = "west-a"
PREFILL: Final = "east-p"
DECODE: Final = ("east-d1", "east-d2")


def pd_document(model_dir: Path, *, threshold_tokens: int, transfer: dict[str, Any] | None = None) -> dict[str, Any]:
    """Of one PrfaaS instance, one that prefills in the PD cluster, and two that decode."""
    ports = free_ports(13)
    east = [endpoint(ports[3:6], name=PREFILL, duty="prefill")]
    east += [endpoint(ports[at : at + 3], name=name, duty="decode") for at, name in zip((6, 9), DECODE, strict=True)]
    return {
        "model": {"name": MODEL_NAME, "path": str(model_dir), "max_model_tokens": 2048},
        "clusters": {
            "west": {"role": "prfaas", "endpoints": [endpoint(ports[0:3], name=PRFAAS)]},
            "east": {"role": "pd", "endpoints": east},
        },
        "links": [{"from": "west", "to": "east", "bandwidth": "1Gbps", "rtt": "1ms"}],
        "policy": {"kind": "fixed", "routing_threshold_tokens": threshold_tokens},
        "transfer": {"lanes": 1, "arena": "64MiB", "deadline": "20s", "lease": "20s", **(transfer or {})},
        "gateway": {"port": ports[12]},
    }


def add_planning(document: dict[str, Any]) -> None:
    """What the policy `prfaas` needs beside the rest. Sizes and times are of another model than the tiny one: the
    threshold that is found lies between a long prompt and a short one, and says nothing about this machine."""
    document["model"]["profile"] = "internal-1t-hybrid"
    document["clusters"]["west"]["accelerator"] = "h200"
    document["clusters"]["east"]["accelerator"] = "h20"
    document["links"][0]["bandwidth"] = "20Gbps"
    document["workload"] = {
        "input_tokens": {"lognormal": {"mu": 6.4, "sigma": 0.7, "min": 64, "max": 2048}},
        "output_tokens": 256,
    }


@dataclass(frozen=True)
class Kill:
    """Of one process at one phase of a request. `kind` is engine or kvnode; `instance` is PRFAAS, PREFILL, or decode:
    whichever instance decodes."""

    kind: str
    instance: str
    phase: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.instance}-{self.phase}"

    def victim(self, decode: str) -> str:
        """The process's name, if that instance decodes."""
        return f"{self.kind}-{decode if self.instance == 'decode' else self.instance}"


class PdCluster(Deployed):
    """`long` and `short` are prompts' lengths on the two sides of the threshold."""

    long_tokens = 1100
    short_tokens = 300

    def lanes_are_up(self) -> bool:
        """From every instance that sends to every one that it sends to."""
        topology = self.topology
        for sender in topology.senders:
            peers = http(f"{sender.kvnode_url}/health")[0]["peers"]
            if any(not peers.get(target.name, {}).get("lanes_up") for target in topology.sends_to(sender)):
                return False
        return True

    def landing_at(self, *states: str) -> str | None:
        """The decode instance whose node holds a landing in one of these states."""

        def held(name: str) -> float:
            url = self.instance(name).kvnode_url
            return sum(self.metric(url, "prfaas_landings", state=state) for state in states)

        return next((name for name in DECODE if held(name)), None)

    def all_are_seen(self) -> bool:
        """By the gateway, as working."""
        return all(member["engine"] and member["node"] for member in self.members().values())

    def route(self, num_tokens: int) -> str:
        """Of a request of that length, sent now."""
        raise NotImplementedError

    def wait_ready(self) -> None:
        """Wait until lanes are up and both ways of prefilling elsewhere are taken."""
        wait_until(self.lanes_are_up, 60.0)
        wait_until(self.all_are_seen, 60.0)
        wait_until(lambda: self.route(self.long_tokens) == "remote", 60.0)
        wait_until(lambda: self.route(self.short_tokens) == "pd_prefill", 60.0)


class PdSite(PdCluster, VllmDeployed):
    """With vLLM engines that compute one sequence at a time, all with the same chunks."""

    def __init__(self, model: str, *, models: Path, transfer: dict[str, Any] | None = None) -> None:
        document = pd_document(make_model(model, models), threshold_tokens=700, transfer=transfer)
        add_planning(document)
        args = [*ENGINE_ARGS, *chunks(CHUNK_TOKENS), "--max-num-seqs", "1", "--enforce-eager"]
        for core, cluster in enumerate(document["clusters"].values()):
            cluster["engine"] = {"args": args, "env": {"VLLM_CPU_OMP_THREADS_BIND": str(core)}}
        super().__init__(document)

    @property
    def decode(self) -> str:
        """URL of the first decode engine."""
        return self.instance(DECODE[0]).engine_url

    def wait_ready(self) -> None:
        for instance in self.topology.instances:
            self.warm_up(instance.engine_url)
        super().wait_ready()

    def route(self, num_tokens: int) -> str:
        return str(self.story(self.ask(list(range(2, 202)) * (num_tokens // 200), 1))["route"])


class FakePdSite(PdCluster):
    """With `testing.node_engine` in the engines' places: a character is a token."""

    long_tokens = 400
    short_tokens = 50

    def __init__(
        self,
        *,
        transfer: dict[str, Any] | None = None,
        edit: Callable[[dict[str, Any]], object] = lambda document: None,
    ) -> None:
        """`edit` changes the deployment file before anybody reads it."""
        self._model = tempfile.TemporaryDirectory(prefix="prfaas-model-")
        model_dir = Path(self._model.name)
        write_tiny_model(model_dir)
        more = {"encryption": "none", **(transfer or {})}
        document = pd_document(model_dir, threshold_tokens=200, transfer=more)
        edit(document)
        super().__init__(document)

    def plan(self) -> dict[str, ProcessSpec]:
        """Nodes, fakes, and then the gateway."""
        planned = super().plan()
        gateway = planned.pop("gateway")
        fakes = {spec.name: spec for spec in map(self._fake, self.topology.instances)}
        return {**planned, **fakes, gateway.name: gateway}

    def _fake(self, instance: Instance) -> ProcessSpec:
        socket_path = str(self.directory / f"{instance.name}.sock")
        port = port_of(instance.engine_url)
        argv = (sys.executable, "-m", "prfaas.testing.node_engine", "--port", str(port), "--socket", socket_path)
        return ProcessSpec(f"engine-{instance.name}", argv, {}, f"{instance.engine_url}/health")

    def close(self) -> None:
        super().close()
        self._model.cleanup()

    def complete(self, prompt: str, max_tokens: int = 8) -> tuple[str, str]:
        """Text of the answer, and the request's id. Raises HttpError."""
        body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": max_tokens}
        reply, headers = http(f"{self.gateway}/v1/completions", body)
        names = {name.lower(): value for name, value in headers.items()}
        return str(reply["choices"][0]["text"]), names["x-request-id"]

    def route(self, num_tokens: int) -> str:
        # Never the same prompt twice: one that an instance has cached takes another route.
        prompt = secrets.token_hex(num_tokens // 2)
        return str(self.story_of(self.complete(prompt)[1])["route"])

    def engine_state(self, name: str) -> dict[str, Any]:
        """What a fake says of itself: see `testing.node_engine`."""
        return dict(http(f"{self.instance(name).engine_url}/state")[0])

    def pause(self, at: str) -> None:
        """Have all fakes that run stop at a point of a request, or, if it is empty, go on."""
        for instance in self.topology.instances:
            try:
                http(f"{instance.engine_url}/pause", {"at": at})
            except OSError:
                continue
