"""Deployment files of many clusters: the case study in larger numbers, and the paper's 10,000 GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

GPUS_PER_INSTANCE: Final = 8
#: Of each PrfaaS cluster, and of each PD cluster: 420 and 830, in all 1,250 instances or 10,000 GPUs. In the case study
#: a PrfaaS instance has two of a PD cluster beside it; here it has 1.98.
WEST_10K: Final = (42,) * 10
EAST_10K: Final = (21,) * 30 + (20,) * 10
#: The paper's 1.8 Tbps are of 10,000 GPUs that all prefill. As many PD instances as decode all that these send.
PAPER_WEST: Final = (125,) * 10
PAPER_EAST: Final = (5,) * 40
PAPER_TOKENS: Final = 128_000


def _links(west: Sequence[int], east: Sequence[int], gbps: float) -> list[dict[str, str]]:
    return [
        {"from": f"west-{source}", "to": f"east-{target}", "bandwidth": f"{gbps:g}Gbps"}
        for source in range(len(west))
        for target in range(len(east))
    ]


def like_case_study(west: Sequence[int], east: Sequence[int], gbps: float) -> dict[str, Any]:
    """Instances by cluster, all PrfaaS clusters linked to all PD clusters by `gbps` each."""
    clusters: dict[str, Any] = {}
    for index, num in enumerate(east):
        clusters[f"east-{index}"] = {"role": "pd", "accelerator": "h20", "instances": num}
    for index, num in enumerate(west):
        clusters[f"west-{index}"] = {"role": "prfaas", "accelerator": "h200", "instances": num}
    lengths = {"lognormal": {"mu": 9.9, "sigma": 1.0, "min": 128, "max": 131072}}
    return {
        "model": {"profile": "internal-1t-hybrid"}, "clusters": clusters, "links": _links(west, east, gbps),
        "workload": {"input_tokens": lengths, "output_tokens": 1024}, "slo": {"tpot": "25ms"},
        "policy": {"kind": "prfaas"},
    }  # fmt: skip


def of_the_paper(gbps: float = 25.0) -> dict[str, Any]:
    """10,000 H200 prefill prompts of 128,000 tokens for Ring-2.5-1T. How it decodes is not published: `decode` is made
    up, and there is enough of it."""
    clusters: dict[str, Any] = {}
    for index, num in enumerate(PAPER_EAST):
        decode = {"max_batch": 64, "step": "25ms"}
        clusters[f"east-{index}"] = {"role": "pd", "accelerator": "h200", "instances": num, "decode": decode}
    for index, num in enumerate(PAPER_WEST):
        clusters[f"west-{index}"] = {"role": "prfaas", "accelerator": "h200", "instances": num}
    return {
        "model": {"profile": "ring-2.5-1t"}, "clusters": clusters, "links": _links(PAPER_WEST, PAPER_EAST, gbps),
        "workload": {"input_tokens": {"constant": PAPER_TOKENS}, "output_tokens": 1024}, "slo": {"tpot": "25ms"},
        "policy": {"kind": "naive"},
    }  # fmt: skip


def written(deployment: dict[str, Any], file: Path) -> Path:
    """As a deployment file."""
    file.write_text(yaml.safe_dump(deployment, sort_keys=False))
    return file
