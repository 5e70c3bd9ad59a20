"""The case study of arXiv 2604.15039 as a deployment of emulated engines on this machine."""

from __future__ import annotations

from typing import Any, Final

from prfaas.launch.addresses import free_ports, free_ports_in_a_row

MODEL: Final = "internal-1t-hybrid"
PRFAAS: Final = "prfaas-west"
PD: Final = "pd-east"
NUM_PRFAAS, NUM_PREFILL, NUM_DECODE = 4, 3, 5
#: A fifth of the time and a thousandth of the bytes are what two busy cores can serve with room to spare.
TIME_SCALE: Final = 0.2
BYTES_SCALE: Final = 0.001


def case_study_document(
    *,
    num_prefill: int = NUM_PREFILL,
    num_pd: int = NUM_PREFILL + NUM_DECODE,
    policy: dict[str, Any] | None = None,
    time_scale: float = TIME_SCALE,
) -> dict[str, Any]:
    """With ports that are free now. The link between the clusters is emulated too."""
    ports = free_ports(3 * (NUM_PRFAAS + num_pd) + 1)
    east = [_endpoint(ports, "prefill" if index < num_prefill else "decode") for index in range(num_pd)]
    west = [_endpoint(ports, None) for _ in range(NUM_PRFAAS)]
    cluster = {"gpus_per_instance": 8, "engine": {"kind": "emulated"}}
    length = {"mu": 9.90, "sigma": 1.00, "min": 128, "max": 131_072}
    link = {"from": PRFAAS, "to": PD, "bandwidth": "100Gbps", "rtt": "20ms"}
    return {
        "model": {"name": MODEL, "profile": MODEL, "max_model_tokens": 140_000},
        "emulation": {"time_scale": time_scale, "bytes_scale": BYTES_SCALE},
        "clusters": {
            PRFAAS: {"role": "prfaas", "accelerator": "h200", "endpoints": west, **cluster},
            PD: {"role": "pd", "accelerator": "h20", "endpoints": east, **cluster},
        },
        "links": [{**link, "emulated_at": f"127.0.0.1:{free_ports_in_a_row(num_pd + 1) + 1}"}],
        "workload": {"input_tokens": {"lognormal": length}, "output_tokens": 1024},
        "slo": {"tpot": "25ms"},
        "policy": policy or {"kind": "prfaas"},
        "transfer": {"lanes": 1, "arena": "64MiB", "deadline": "10s", "lease": "10s"},
        "gateway": {"port": ports.pop()},
    }


def _endpoint(ports: list[int], duty: str | None) -> dict[str, str]:
    engine, node, lanes = (ports.pop() for _ in range(3))
    found = {
        "kind": "emulated",
        "engine": f"http://127.0.0.1:{engine}",
        "kvnode": f"http://127.0.0.1:{node}",
        "lanes": f"127.0.0.1:{lanes}",
    }
    return found if duty is None else {**found, "duty": duty}
