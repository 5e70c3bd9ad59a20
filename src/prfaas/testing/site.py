"""A whole deployment on this machine, for tests and benchmarks: real vLLM, real nodes, a real gateway.

Public, so that whoever changes PrfaaS or pins another vLLM can run the same proofs on their own machine.
"""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prfaas.demo.tiny_models import VOCAB_TOKENS, make_model
from prfaas.launch.plan import ProcessSpec
from prfaas.testing.deployed import Deployed, HttpError, endpoint, free_ports, http, port_of
from prfaas.testing.lane_proxy import LaneProxy
from prfaas.testing.node_pair import wait_until

__all__ = [
    "CHUNK_TOKENS",
    "ENGINE_ARGS",
    "MODEL_NAME",
    "Answer",
    "HttpError",
    "Site",
    "VllmDeployed",
    "chunks",
    "free_ports",
    "http",
]

MODEL_NAME = "tiny"
ENGINE_ARGS = (
    "--dtype", "bfloat16", "--kv-cache-memory-bytes", str(64 << 20), "--max-logprobs", str(VOCAB_TOKENS),
)  # fmt: skip
#: Short, so that most prompts of the tests are prefilled and shipped in several chunks.
CHUNK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy tokens, their log-probabilities, and the request's id at the gateway.

    `candidates` has, for every token of the answer, log-probabilities of the likeliest by token id: as many as the
    request's `logprobs`, and the chosen one.
    """

    tokens: list[int]
    logprobs: list[float]
    request_id: str | None
    candidates: list[dict[int, float]] = field(default_factory=list)

    def after(self, num_tokens: int) -> Answer:
        """The answer without its first `num_tokens` tokens."""
        rest = slice(num_tokens, None)
        return Answer(self.tokens[rest], self.logprobs[rest], self.request_id, self.candidates[rest])


class VllmDeployed(Deployed):
    """One with vLLM engines of a tiny model, named `MODEL_NAME`."""

    def ask(self, prompt: list[int], max_tokens: int, url: str | None = None, **extra: Any) -> Answer:
        """Greedy completion of token ids, at the gateway unless `url` is an engine's. Raises HttpError."""
        body = {
            "model": MODEL_NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 1,
            "ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": True,
            "cache_salt": secrets.token_hex(8), **extra,
        }  # fmt: skip
        if body["cache_salt"] is None:
            del body["cache_salt"]
        reply, headers = http(f"{url or self.gateway}/v1/completions", body)
        choice = reply["choices"][0]
        names = {name.lower(): value for name, value in headers.items()}
        logprobs = choice["logprobs"]
        candidates = [
            {int(name.removeprefix("token_id:")): value for name, value in step.items()}
            for step in logprobs["top_logprobs"]
        ]
        return Answer(choice["token_ids"], logprobs["token_logprobs"], names.get("x-request-id"), candidates)

    def warm_up(self, url: str) -> None:
        """vLLM 0.32's CPU kernels die of an illegal instruction on some models if the very first forward pass of a
        process has one token, as that of an offloaded request has."""
        self.ask(list(range(64)), 2, url=url)

    def story(self, answer: Answer) -> dict[str, Any]:
        """The gateway's finished story of an answer."""
        return self.story_of(answer.request_id)

    def transfer_id(self, answer: Answer) -> str:
        """The transfer of an offloaded answer, from the gateway's log: no client may know it."""
        marker = f"offload request_id={answer.request_id} transfer_id="
        return wait_until(lambda: self.log("gateway").partition(marker)[2].partition("\n")[0] or None)


class Site(VllmDeployed):
    """One PrfaaS cluster and one PD cluster, one engine each, joined through a `LaneProxy`.

    Both engines prefill in chunks of `chunk_tokens`, because chunks of another size give other bits (docs/equality.md).
    `decode_chunk_tokens` gives the decode engine another size, for tests of just that.
    """

    def __init__(
        self,
        model: str,
        *,
        models: Path,
        threshold_tokens: int = 0,
        chunk_tokens: int = CHUNK_TOKENS,
        decode_chunk_tokens: int | None = None,
        prefill_args: tuple[str, ...] = (),
        decode_args: tuple[str, ...] = (),
        eager: bool = True,
        max_num_seqs: int = 8,
        transfer: dict[str, Any] | None = None,
        gateway: dict[str, Any] | None = None,
        max_model_tokens: int = 2048,
    ) -> None:
        self.proxy: LaneProxy
        ports = free_ports(7)
        common = [*ENGINE_ARGS, "--max-num-seqs", str(max_num_seqs), *(["--enforce-eager"] if eager else [])]
        document = {
            "model": {"name": MODEL_NAME, "path": str(make_model(model, models)), "max_model_tokens": max_model_tokens},
            "clusters": {
                "west": _cluster("prfaas", ports[0:3], [*common, *chunks(chunk_tokens), *prefill_args], "0"),
                "east": _cluster(
                    "pd", ports[3:6], [*common, *chunks(decode_chunk_tokens or chunk_tokens), *decode_args], "1"
                ),
            },
            "links": [{"from": "west", "to": "east"}],
            "policy": {"kind": "fixed", "routing_threshold_tokens": threshold_tokens},
            "transfer": {"arena": "64MiB", "deadline": "20s", "lease": "20s", **(transfer or {})},
            "gateway": {"port": ports[6], **(gateway or {})},
        }
        self.prefill, self.prefill_node = (f"http://127.0.0.1:{port}" for port in ports[0:2])
        self.decode, self.decode_node = (f"http://127.0.0.1:{port}" for port in ports[3:5])
        super().__init__(document)

    def plan(self) -> dict[str, ProcessSpec]:
        """With the proxy in the lanes' way."""
        self.proxy = LaneProxy(("127.0.0.1", port_of(f"//{self.instance('east-0').lanes}")))
        through = ("--peer", f"east-0={self.proxy.address}")
        specs = super().plan()
        sender = specs["kvnode-west-0"]
        return {**specs, sender.name: dataclasses.replace(sender, argv=(*sender.argv, *through))}

    def close(self) -> None:
        super().close()
        self.proxy.close()

    def wait_ready(self) -> None:
        """Wait until lanes are up and the gateway offloads."""
        for engine in (self.prefill, self.decode):
            self.warm_up(engine)
        wait_until(lambda: self._lanes_up() == 4, 60.0)
        wait_until(self._offloads, 60.0)

    def _lanes_up(self) -> int:
        health, _ = http(f"{self.prefill_node}/health")
        return int(health["peers"]["east-0"]["lanes_up"])

    def _offloads(self) -> bool:
        answer = self.ask(list(range(2, 50)), 1)
        return bool(self.story(answer)["route"] == "remote")

    def holdings(self) -> dict[str, float]:
        """Everything that may be held anywhere: all zero when idle. A process that is down holds nothing."""
        held: dict[str, float] = {}
        for name, url in (("west", self.prefill_node), ("east", self.decode_node)):
            try:
                health, _ = http(f"{url}/health", timeout_s=5)
            except OSError:
                continue
            held[f"{name} arena bytes"] = health["arena_bytes"] - health["arena_free_bytes"]
        for name, url in (("west", self.prefill), ("east", self.decode)):
            try:
                for metric in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
                    held[f"{name} {metric}"] = self.metric(url, f"vllm:{metric}")
            except OSError:
                continue
        return held

    def wait_idle(self, timeout_s: float = 60.0) -> None:
        """Wait until nothing is held on any side; the error names what is."""
        try:
            wait_until(lambda: not any(self.holdings().values()), timeout_s)
        except TimeoutError:
            raise AssertionError(f"still held: { ({k: v for k, v in self.holdings().items() if v}) }") from None


def chunks(chunk_tokens: int) -> list[str]:
    """vLLM's arguments for prefill in chunks of that size."""
    return ["--max-num-batched-tokens", str(chunk_tokens)]


def _cluster(role: str, ports: list[int], args: list[str], core: str) -> dict[str, Any]:
    return {
        "role": role,
        "endpoints": [endpoint(ports)],
        "engine": {"args": args, "env": {"VLLM_CPU_OMP_THREADS_BIND": core}},
    }
