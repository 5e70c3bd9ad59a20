"""The real gateway in front of the fake engine. `python -m … GATEWAY_PORT UPSTREAM_PORT MODEL_DIR`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from prfaas.deployment.model import Deployment
from prfaas.gateway.heap import collect_rarely
from prfaas.gateway.server import serve


def deployment(port: int, upstream_port: int, model_dir: str, max_model_tokens: int = 4096) -> Deployment:
    """One decode engine, no PrfaaS cluster."""
    endpoint = {
        "engine": f"http://127.0.0.1:{upstream_port}",
        "kvnode": f"http://127.0.0.1:{upstream_port}",
        "lanes": "127.0.0.1:1",
    }
    return Deployment.model_validate(
        {
            "model": {"name": "tiny", "path": model_dir, "max_model_tokens": max_model_tokens},
            "clusters": {"pd": {"role": "pd", "endpoints": [endpoint]}},
            "gateway": {"port": port},
        }
    )


if __name__ == "__main__":
    # As `prfaas gateway` does before it serves.
    collect_rarely()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(deployment(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]), Path(sys.argv[3])))
