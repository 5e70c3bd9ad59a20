"""AISimulate's end of `benchmarks.simulator.peer`: runs in the other interpreter, and knows nothing of PrfaaS.

`python peer_end.py version` prints the version of the package. A job is a JSON file with what `config_of` reads:
`python peer_end.py config JOB` prints it as AISimulate's configuration, `python peer_end.py run JOB OUT` runs it and
writes what came of every request.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: The interpreter lacks the package.
NO_PACKAGE = 3


def config_of(job: dict[str, Any]) -> dict[str, Any]:
    """A prediction as AISimulate takes it. A prompt is one step of a prefill worker: `polynomial` timing is of the
    tokens of a step. Memory is never short. KVCache crosses at once: that is what a transfer without bandwidth does.
    Nothing is cached, unless the job says so."""
    cache = {
        "block_size": 64,
        "prefix_caching": bool(job.get("has_prefix_caching", False)),
        "bytes_per_token": 1_000,
        "capacity": {"type": "fixed", "blocks": 10_000_000},
    }
    whole_prompt = 200_000
    concurrency = job.get("concurrency")
    load = {"type": "trace_timestamps"} if concurrency is None else {"type": "concurrency", "concurrency": concurrency}
    prefill = {
        "parallelism": {"replicas": job["num_prefill"]},
        "scheduler": {"max_batched_tokens": whole_prompt, "max_sequences": 1},
        "kv_cache": cache,
        "timing": {"type": "polynomial"},
    }
    decode = {
        "parallelism": {"replicas": job["num_decode"]},
        "scheduler": {"max_batched_tokens": whole_prompt, "max_sequences": job["max_batch"]},
        "kv_cache": cache,
        "timing": {"type": "fixed", "prefill_ms": 0.0, "decode_ms": job["step_ms"]},
    }
    return {
        "engine": {
            "mode": "disaggregated",
            # With fixed capacity and timing of its own a worker takes nothing from model and hardware but their names.
            "model": "Qwen/Qwen3-32B-FP8",
            "hardware": "h200_sxm",
            "backend": "vllm",
            "context_length": whole_prompt,
            "workers": {"prefill": prefill, "decode": decode},
        },
        "traffic": {
            "source": {"type": "trace", "paths": [job["trace"]], "format": "mooncake", "block_size": 512},
            "load": load,
        },
    }


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Every request's times in seconds, in the order of the workload's lines, and how long its engine says
    that the replay took."""
    from aisimulate.config import CorePredictionConfig  # type: ignore[import-not-found, unused-ignore]
    from aisimulate.predict import run_prediction  # type: ignore[import-not-found, unused-ignore]
    from aisimulate.runner import EngineReplayRunnerFactory  # type: ignore[import-not-found, unused-ignore]
    from aisimulate.sweeper.replay import ReplayOutputRequirements  # type: ignore[import-not-found, unused-ignore]

    result = run_prediction(
        CorePredictionConfig.model_validate(config_of(job)),
        stack="engine",
        runner_factory=EngineReplayRunnerFactory(),
        output_requirements=ReplayOutputRequirements(include_raw_report=True, capture_per_request=True),
    )
    records = sorted(result.native["per_request"], key=lambda record: int(record["session_id"].split("_")[1]))
    requests = [
        {
            "number": int(record["session_id"].split("_")[1]),
            "arrival_s": record["arrival_time_ms"] / 1e3,
            "prefilled_s": record["source_held_ms"] / 1e3,
            "first_s": record["first_token_ms"] / 1e3,
            "end_s": record["last_token_ms"] / 1e3,
            "num_output_tokens": record["output_length"],
            "decode": record["decode_worker_idx"],
        }
        for record in records
        if record["terminal_status"] == "completed"
    ]
    return {"requests": requests, "engine_s": result.native["wall_time_ms"] / 1e3}


def main() -> int:
    """Command line."""
    try:
        installed = version("aisimulate")
    except PackageNotFoundError:
        return NO_PACKAGE
    if sys.argv[1] == "version":
        print(installed)
    elif sys.argv[1] == "config":
        print(json.dumps(config_of(json.loads(Path(sys.argv[2]).read_text()))))
    else:
        Path(sys.argv[3]).write_text(json.dumps(run(json.loads(Path(sys.argv[2]).read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
