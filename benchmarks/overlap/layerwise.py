"""Layer-wise, chunk-wise shipping: prefill and transfer together against one after the other.

`python -m benchmarks.overlap.layerwise [--rounds 5] [--json]`: real vLLM on both ends, a link slowed (in user space, on
loopback) so that the transfer takes about as long as the prefill. In every round, in turn: the prefill alone (link at
full speed), the transfer alone (the same number of bytes, all staged at once, through the same slow link), and both.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from prfaas.core.model.layout import KVGroup, KVGroupKind, KVLayout
from prfaas.testing.lane_proxy import LaneProxy
from prfaas.testing.node_pair import node_pair, wait_until
from prfaas.testing.site import Site, http
from prfaas.transport.limits import LaneLimits
from prfaas.transport.outbound import Dial, tcp_dialer

PROMPT_TOKENS = 12_000
CHUNK_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds from opening the transfer to its last acknowledged byte (prefill: to its last staged byte)."""

    prefill_s: float
    transfer_s: float
    together_s: float

    @property
    def ratio(self) -> float:
        """Together over one after the other; 0.5 is perfect overlap of equal parts."""
        return self.together_s / (self.prefill_s + self.transfer_s)


def one_record(site: Site, rng: random.Random, num_tokens: int) -> dict[str, float]:
    """The sending node's record of one offloaded prompt."""
    answer = site.ask([rng.randrange(256) for _ in range(num_tokens)], 1)
    story = site.story(answer)
    assert story["route"] == "remote", story
    record, _ = http(f"{site.prefill_node}/v1/transfers/{site.transfer_id(answer)}")
    return dict(record)


def transfer_alone_s(num_bytes: int, rate_bytes_per_s: float) -> float:
    """The same bytes over the same kind of link, all there from the start."""
    state = KVGroup(KVGroupKind.LINEAR_STATE, (0,), 0, 0, num_bytes, 0, "bytes")
    layout = KVLayout("bytes", (state,), 1, 1, 100)
    with tempfile.TemporaryDirectory() as directory:
        proxies: list[LaneProxy] = []

        def through_proxy(direct: Dial) -> Dial:
            del direct

            def dial() -> socket.socket:
                if not proxies:  # the node dials before its peer's port is known; it will dial again
                    raise OSError("the proxy is not up yet")
                host, port = proxies[0].address.split(":")
                return tcp_dialer(host, int(port), 2.0)()

            return dial

        limits = LaneLimits()
        arena_bytes = num_bytes + (1 << 20)
        with node_pair(
            Path(directory), layout=layout, limits=limits, arena_bytes=arena_bytes, wrap_dial=through_proxy
        ) as pair:
            proxy = LaneProxy(pair.sink.inbound.address)
            proxy.rate_bytes_per_s = rate_bytes_per_s
            proxies.append(proxy)
            wait_until(lambda: pair.source.links["sink"].lanes_up == limits.num_lanes)
            memory = pair.stage_open("bytes", pair.reserve("bytes", 2), deadline_s=300.0)
            start_s = time.monotonic()
            pair.source.staged("bytes", [(0, len(memory))])
            pair.wait_state("bytes", "landed", timeout_s=300.0)
            took_s = time.monotonic() - start_s
            pair.source.stage_close("bytes")
            proxy.close()
            return took_s


def measure(models: Path, rounds: int, prompt_tokens: int = PROMPT_TOKENS) -> tuple[list[Round], int, float]:
    """(rounds, bytes per transfer, link rate in bytes per second)."""
    rng = random.Random(20_261_121)
    results: list[Round] = []
    with Site(
        "qwen3-next",
        models=models,
        chunk_tokens=CHUNK_TOKENS,
        max_model_tokens=16_384,
        transfer={"deadline": "300s", "lease": "60s"},
    ) as site:
        one_record(site, rng, prompt_tokens)  # warm
        first = one_record(site, rng, prompt_tokens)
        num_bytes = int(first["num_bytes"])
        rate = num_bytes / first["last_staged_s"]
        for _ in range(rounds):
            site.proxy.rate_bytes_per_s = None
            prefill_s = one_record(site, rng, prompt_tokens)["last_staged_s"]
            transfer_s = transfer_alone_s(num_bytes, rate)
            site.proxy.rate_bytes_per_s = rate
            together_s = one_record(site, rng, prompt_tokens)["finished_s"]
            results.append(Round(prefill_s, transfer_s, together_s))
    return results, num_bytes, rate


def main() -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "prfaas-models")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rounds, num_bytes, rate = measure(arguments.models, arguments.rounds)
    median = statistics.median(result.ratio for result in rounds)
    if arguments.json:
        found = {"ratio_median": median, "num_bytes": num_bytes, "link_bytes_per_s": rate}
        sys.stdout.write(json.dumps({**found, "rounds": [asdict(result) for result in rounds]}) + "\n")
        return
    sys.stdout.write(f"{num_bytes / 1e6:.1f} MB a transfer, link {rate * 8 / 1e6:.1f} Mbit/s\n")
    sys.stdout.write("prefill alone   transfer alone   together   ratio\n")
    for r in rounds:
        sys.stdout.write(f"{r.prefill_s:11.2f} s {r.transfer_s:14.2f} s {r.together_s:8.2f} s {r.ratio:7.2f}\n")
    sys.stdout.write(f"median ratio {median:.2f} (1.00 is one after the other, 0.50 is perfect)\n")


if __name__ == "__main__":
    main()
