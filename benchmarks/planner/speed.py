"""How long `prfaas plan` takes as a whole process: the paper's case, and ten PrfaaS by ten PD clusters, mixed hardware.

    python -m benchmarks.planner.speed [--rounds 9] [--large-rounds 3]

For the large ones it also prints how far the plan is below what divisible instances would serve.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from prfaas.core.planning.search_many import relaxed_rps
from prfaas.scenario.build import build_scenario

ROOT = Path(__file__).parents[2]
CASE = ROOT / "examples" / "case-study" / "prfaas.yaml"
SEEDS = (1, 2, 3)
NUM_CLUSTERS = 10

#: A second accelerator for half of the PrfaaS clusters: a fifth faster than the H200 of the paper.
FASTER = {"s": 0.31130, "s_per_token": 3.36440e-05, "s_per_token2": 7.94920e-11}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--large-rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"machine: {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}")
    small = [timed(CASE)[0] for _ in range(options.rounds + 1)][1:]  # the first fills the disk cache
    print(
        f"case study: median {statistics.median(small):.3f} s, worst {max(small):.3f} s of {len(small)}, target 0.3 s"
    )
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            file = write_large(Path(folder), seed)
            runs = [timed(file) for _ in range(options.large_rounds)]
            seconds = [run[0] for run in runs]
            rps = runs[0][1]["system_rps"]
            bound = relaxed_rps(build_scenario(file))
            print(
                f"{NUM_CLUSTERS} x {NUM_CLUSTERS}, seed {seed}: median {statistics.median(seconds):.2f} s,"
                f" worst {max(seconds):.2f} s of {len(seconds)}, target 10 s; {rps:.2f} requests/s,"
                f" {1 - rps / bound:+.2%} under divisible instances"
            )


def timed(file: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of a whole process, and the plan."""
    started_s = time.perf_counter()
    argv = [sys.executable, "-m", "prfaas", "plan", str(file), "--json"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=ROOT)
    return time.perf_counter() - started_s, json.loads(done.stdout)


def write_large(folder: Path, seed: int) -> Path:
    """Ten by ten clusters, a link of random width per pair, prices on everything."""
    rng = random.Random(seed)
    profile = {"profile": 1, "model": "internal-1t-hybrid", "accelerator": "faster", "gpus_per_instance": 8}
    profile |= {"source": "made up for this benchmark", "prefill": {"quadratic": FASTER}}
    (folder / "faster.yaml").write_text(yaml.safe_dump(profile))
    clusters: dict[str, Any] = {}
    for index in range(NUM_CLUSTERS):
        kind = {"profile": "faster.yaml"} if index % 2 else {"accelerator": "h200"}
        clusters[f"west-{index}"] = {
            "role": "prfaas",
            "instances": rng.randint(1, 3),
            "price_per_gpu_hour": 2.0,
            **kind,
        }
        clusters[f"east-{index}"] = {"role": "pd", "instances": rng.randint(3, 12), "accelerator": "h20"}
        clusters[f"east-{index}"] |= {"price_per_gpu_hour": 1.0}
    links = [
        {"from": f"west-{i}", "to": f"east-{j}", "bandwidth": f"{rng.choice([1, 2, 5, 25])}Gbps"}
        for i in range(NUM_CLUSTERS)
        for j in range(NUM_CLUSTERS)
    ]
    lengths = {"lognormal": {"mu": 9.9, "sigma": 1.0, "min": 128, "max": 131072}}
    deployment = {
        "model": {"profile": "internal-1t-hybrid"}, "clusters": clusters, "links": links,
        "workload": {"input_tokens": lengths, "output_tokens": 1024}, "slo": {"tpot": "25ms"},
        "policy": {"kind": "prfaas"}, "prices": {"per_egress_gb": 0.02},
    }  # fmt: skip
    file = folder / f"large-{seed}.yaml"
    file.write_text(yaml.safe_dump(deployment, sort_keys=False))
    return file


if __name__ == "__main__":
    main()
