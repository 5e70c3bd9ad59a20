"""`prfaas demo --engine vllm`: two datacenters on this machine, real requests, how each was served, and the proof."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from prfaas.demo.requests import Client, DemoFailed, as_clients_send_them, prove, requests_table, send_all
from prfaas.demo.started import started
from prfaas.deployment.load import load_deployment
from prfaas.deployment.topology import topology_of
from prfaas.launch.addresses import free_ports
from prfaas.launch.own_files import make_own_folder, open_own_file

MODEL_NAME = "tiny-hybrid"
THRESHOLD_TOKENS = 512
#: Around the prefill chunk of 512 tokens, and near the longest that the model takes.
PROOF_LENGTHS = (513, 600, 1025, 1900)

DEPLOYMENT = """\
# Written by `prfaas demo`. Ports were free when it was written.
model: {{name: {name}, path: models/qwen3-next, max_model_tokens: 2048}}
clusters:
  prfaas-west:
    role: prfaas
    endpoints:
      - {{engine: "http://127.0.0.1:{0}", kvnode: "http://127.0.0.1:{1}", lanes: "127.0.0.1:{2}"}}
    engine:
      args: &args [--dtype, bfloat16, --enforce-eager, --max-num-seqs, "8", --max-num-batched-tokens, "512",
                   --kv-cache-memory-bytes, "134217728"]
      env: {{VLLM_CPU_OMP_THREADS_BIND: "{west}"}}
  pd-east:
    role: pd
    endpoints:
      - {{engine: "http://127.0.0.1:{3}", kvnode: "http://127.0.0.1:{4}", lanes: "127.0.0.1:{5}"}}
    engine:
      args: *args
      env: {{VLLM_CPU_OMP_THREADS_BIND: "{east}"}}
links:
  - {{from: prfaas-west, to: pd-east}}
policy: {{kind: fixed, routing_threshold_tokens: {threshold}}}
transfer: {{arena: 128MiB, deadline: 60s}}
gateway: {{port: {6}}}
"""


def demo(directory: Path, console: Console) -> None:
    """Raises DemoFailed, or what starting raises."""
    if importlib.util.find_spec("vllm") is None or importlib.util.find_spec("openai") is None:
        raise DemoFailed("vLLM and the openai client are needed here; run 'make setup', which installs them")
    console.print("[bold]1/4[/] a tiny hybrid model with random weights (Qwen3-Next: linear and full attention)")
    make_own_folder(directory)
    _make_model(directory / "models")
    file = directory / "deployment.yaml"
    with open_own_file(file) as stream:
        stream.write(_deployment_text().encode())
    deployment = load_deployment(file)
    console.print("[bold]2/4[/] two datacenters, a vLLM and a KV node in each, and a gateway (half a minute)")
    with started(deployment, file, directory / "logs", console):
        _show(deployment.gateway.port, topology_of(deployment).decoders[0].engine_url, console)
        console.print("stopping every process")


def _show(port: int, decode_url: str, console: Console) -> None:
    gateway = Client(f"http://127.0.0.1:{port}", MODEL_NAME)
    local = Client(decode_url, MODEL_NAME)
    console.print(
        f"[bold]3/4[/] requests through the openai client; over {THRESHOLD_TOKENS} uncached tokens go west",
        highlight=False,
    )
    gateway.wait_ready()
    served = send_all(gateway, console)
    console.print(requests_table(served))
    for item in served:
        problem = item.problem(THRESHOLD_TOKENS)
        if problem is not None:
            raise DemoFailed(f"request {item.title!r} {problem}")
    console.print(
        "[bold]4/4[/] the same prompts prefilled here and there, in the same chunks: tokens and log-probabilities"
    )
    for line, good in prove(gateway, local, PROOF_LENGTHS):
        console.print(f"  {line}", highlight=False)
        if not good:
            raise DemoFailed(f"an offloaded answer differs from the local one: {line}")
    console.print(f"  {as_clients_send_them(gateway, local, PROOF_LENGTHS)}", highlight=False, soft_wrap=True)


def _make_model(directory: Path) -> None:
    argv = [sys.executable, "-m", "prfaas.demo.tiny_models", str(directory), "--model", "qwen3-next"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    except subprocess.TimeoutExpired:
        raise DemoFailed("making the model took more than ten minutes") from None
    if done.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise DemoFailed(f"making the model failed: {last[0]}")


def _deployment_text() -> str:
    cores = sorted(os.sched_getaffinity(0))
    return DEPLOYMENT.format(
        *free_ports(7), name=MODEL_NAME, threshold=THRESHOLD_TOKENS, west=cores[0], east=cores[min(1, len(cores) - 1)]
    )
