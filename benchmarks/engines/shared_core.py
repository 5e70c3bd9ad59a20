"""Two vLLM engines whose workers share a core: tokens of each, started from one session and from two. No PrfaaS in it.

`python -m benchmarks.engines.shared_core [--seconds 60]`. Linux puts each session of processes into a scheduling group
of its own (autogroup). vLLM's engine core and worker wait for each other by yielding their core all the time, and
engines of two groups do not get it in turn then.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from prfaas.demo.tiny_models import make_model
from prfaas.engines.vllm.launch import ENV
from prfaas.testing.deployed import free_ports
from prfaas.testing.node_pair import wait_until
from prfaas.testing.site import ENGINE_ARGS

CORE = "0"
HANG_S = 300.0


def start(port: int, model_dir: Path, folder: Path, *, own_session: bool) -> subprocess.Popen[bytes]:
    argv = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_dir)),
        *("--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048"),
        *(*ENGINE_ARGS, "--max-num-seqs", "1", "--enforce-eager"),
    ]
    env = {**os.environ, **ENV, "VLLM_RPC_BASE_PATH": str(folder), "VLLM_CPU_OMP_THREADS_BIND": CORE}
    with (folder / f"{port}.log").open("wb") as log:
        group = None if own_session else 0
        return subprocess.Popen(
            argv, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=own_session, process_group=group
        )


def is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except OSError:
        return False


def count_tokens(port: int, until_s: float, counted: list[int], at: int) -> None:
    """Add to `counted[at]` the tokens that an engine streams in time, one request after the other."""
    body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 1000, "ignore_eos": True, "stream": True}
    while time.monotonic() < until_s:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        for line in connection.getresponse():
            if time.monotonic() > until_s:
                break
            counted[at] += line.startswith(b"data: {")
        connection.close()


def tokens_of_both(seconds: float, *, own_session: bool) -> list[int]:
    """Of two engines that compute at the same time."""
    ports, counted = free_ports(2), [0, 0]
    with tempfile.TemporaryDirectory(prefix="prfaas-") as name:
        folder = Path(name)
        model_dir = make_model("qwen3-next", folder)
        engines: list[subprocess.Popen[bytes]] = []
        try:
            for port in ports:
                engines.append(start(port, model_dir, folder, own_session=own_session))
            wait_until(lambda: all(map(is_up, ports)), HANG_S)
            until_s = time.monotonic() + seconds
            threads = [
                threading.Thread(target=count_tokens, args=(port, until_s, counted, at), daemon=True)
                for at, port in enumerate(ports)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(seconds + 5)  # one that gets nothing would wait on
        finally:
            for engine in engines:
                os.killpg(engine.pid, signal.SIGKILL)
                engine.wait()
    return counted


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Two vLLM engines on one core, started from one session and from two.")
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds: float = parser.parse_args(arguments).seconds
    for own_session in (True, False):
        counted = tokens_of_both(seconds, own_session=own_session)
        print(f"{'a session each' if own_session else 'one session':>15}: {counted[0]} and {counted[1]} tokens")


if __name__ == "__main__":
    main()
