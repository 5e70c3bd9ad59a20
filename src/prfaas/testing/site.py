"""A whole deployment on this machine, for tests and benchmarks: real vLLM, real nodes, a real gateway.

Public, so that whoever changes PrfaaS or pins another vLLM can run the same proofs on their own machine.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import socket
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from prfaas.demo.tiny_models import VOCAB_TOKENS, make_model
from prfaas.deployment.load import load_deployment
from prfaas.launch.certificates import make_throwaway
from prfaas.launch.plan import ProcessSpec, plan_processes, throwaway_directory
from prfaas.launch.supervisor import Supervisor
from prfaas.testing.lane_proxy import LaneProxy
from prfaas.testing.node_pair import wait_until

MODEL_NAME = "tiny"
ENGINE_ARGS = (
    "--dtype", "bfloat16", "--kv-cache-memory-bytes", str(64 << 20), "--max-logprobs", str(VOCAB_TOKENS),
)  # fmt: skip
START_TIMEOUT_S = 600.0
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


class HttpError(Exception):
    """A response that is not 2xx; `status` and the decoded `body`."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"HTTP {status}: {body}")
        self.status = status
        self.body = body


def http(url: str, body: Any = None, method: str | None = None, timeout_s: float = 120.0) -> tuple[Any, dict[str, str]]:
    """JSON in, (JSON or text, headers) out. Raises HttpError."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return _decode(response.read()), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            raise HttpError(error.code, _decode(error.read())) from None


def _decode(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")


class Site:
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
        self.directory = Path(tempfile.mkdtemp(prefix="prfaas-"))
        self.proxy: LaneProxy
        ports = free_ports(7)
        common = [*ENGINE_ARGS, "--max-num-seqs", str(max_num_seqs), *(["--enforce-eager"] if eager else [])]
        self.file = self.directory / "deployment.yaml"
        self.document = {
            "model": {"name": MODEL_NAME, "path": str(make_model(model, models)), "max_model_tokens": max_model_tokens},
            "clusters": {
                "west": _cluster("prfaas", ports[0:3], [*common, *_chunks(chunk_tokens), *prefill_args], "0"),
                "east": _cluster(
                    "pd", ports[3:6], [*common, *_chunks(decode_chunk_tokens or chunk_tokens), *decode_args], "1"
                ),
            },
            "links": [{"from": "west", "to": "east"}],
            "policy": {"kind": "fixed", "routing_threshold_tokens": threshold_tokens},
            "transfer": {"arena": "64MiB", "deadline": "20s", "lease": "20s", **(transfer or {})},
            "gateway": {"port": ports[6], **(gateway or {})},
        }
        self.file.write_text(yaml.safe_dump(self.document), encoding="utf-8")
        self.gateway = f"http://127.0.0.1:{ports[6]}"
        self.prefill, self.prefill_node = (f"http://127.0.0.1:{port}" for port in ports[0:2])
        self.decode, self.decode_node = (f"http://127.0.0.1:{port}" for port in ports[3:5])
        self.specs = self._specs(("127.0.0.1", ports[5]))
        self.supervisor = Supervisor(self.directory / "logs")

    def _specs(self, lanes: tuple[str, int]) -> dict[str, ProcessSpec]:
        deployment = load_deployment(self.file)
        planned = plan_processes(deployment, self.file, Path(str(self.document["model"]["path"])), self.directory)  # type: ignore[index]
        make_throwaway(deployment, throwaway_directory(self.directory))
        self.proxy = LaneProxy(lanes)
        through = ("--peer", f"east-0={self.proxy.address}")
        return {
            spec.name: dataclasses.replace(spec, argv=(*spec.argv, *through)) if spec.name == "kvnode-west-0" else spec
            for spec in planned
        }

    def __enter__(self) -> Site:
        try:
            self.supervisor.start(list(self.specs.values()))
            self.supervisor.wait_healthy(START_TIMEOUT_S)
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove the files."""
        self.supervisor.stop()
        self.proxy.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def wait_ready(self) -> None:
        """Wait until lanes are up and the gateway offloads."""
        for engine in (self.prefill, self.decode):
            # vLLM 0.32's CPU kernels die of an illegal instruction on some models if the very first forward pass of a
            # process has one token, as that of an offloaded request has.
            self.ask(list(range(64)), 2, url=engine)
        wait_until(lambda: self._lanes_up() == 4, 60.0)
        wait_until(self._offloads, 60.0)

    def _lanes_up(self) -> int:
        health, _ = http(f"{self.prefill_node}/health")
        return int(health["peers"]["east-0"]["lanes_up"])

    def _offloads(self) -> bool:
        answer = self.ask(list(range(2, 50)), 1)
        return bool(self.story(answer)["route"] == "remote")

    def restart(self, name: str) -> None:
        """Start a process that was killed again, and wait until everything works."""
        self.supervisor.processes[name].popen.wait(30)
        self.supervisor.start([self.specs[name]])
        self.supervisor.wait_healthy(START_TIMEOUT_S)
        self.wait_ready()

    def log(self, name: str) -> str:
        return (self.directory / "logs" / f"{name}.log").read_text(errors="replace")

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

    def story(self, answer: Answer) -> dict[str, Any]:
        """The gateway's finished story of an answer."""

        def finished() -> dict[str, Any] | None:
            story, _ = http(f"{self.gateway}/prfaas/requests/{answer.request_id}")
            return story if story.get("closed") else None

        return wait_until(finished, 30.0)

    def transfer_id(self, answer: Answer) -> str:
        """The transfer of an offloaded answer, from the gateway's log: no client may know it."""
        marker = f"offload request_id={answer.request_id} transfer_id="
        return wait_until(lambda: self.log("gateway").partition(marker)[2].partition("\n")[0] or None)

    def metric(self, url: str, name: str, **labels: str) -> float:
        """Sum of a Prometheus sample over everything that carries `labels`."""
        text, _ = http(f"{url}/metrics")
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = [line for line in str(text).splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(label in line for label in wanted))

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


def free_ports(count: int) -> list[int]:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(holder.getsockname()[1]) for holder in holders]
    for holder in holders:
        holder.close()
    return ports


def _chunks(chunk_tokens: int) -> list[str]:
    return ["--max-num-batched-tokens", str(chunk_tokens)]


def _cluster(role: str, ports: list[int], args: list[str], core: str) -> dict[str, Any]:
    engine, node, lanes = ports
    endpoint = {
        "engine": f"http://127.0.0.1:{engine}",
        "kvnode": f"http://127.0.0.1:{node}",
        "lanes": f"127.0.0.1:{lanes}",
    }
    return {"role": role, "endpoints": [endpoint], "engine": {"args": args, "env": {"VLLM_CPU_OMP_THREADS_BIND": core}}}
