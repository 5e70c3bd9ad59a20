"""`python -m benchmarks.scheduler.real`: the threshold on real engines, nodes and lanes while the link is slowed to a
tenth.

One vLLM engine far away and one here, of a tiny model, each on a core of its own; lanes run through a proxy that slows
them (in user space, on loopback). Clients ask in closed loop. In turn: the whole link, a tenth of it, the whole link
again; then the same clients with everything local. Prints when the solved threshold rose and fell, what requests
waited, and how many failed.

Phases follow each other, and where other work shares the cores the engines are twice as fast in one as in another. In
closed loop mean times follow from the number of clients and from that speed alone; so p99 over mean compares phases.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from prfaas.demo.tiny_models import VOCAB_TOKENS
from prfaas.testing.deployed import http
from prfaas.testing.node_pair import wait_until
from prfaas.testing.site import Site

LINK_BYTES_PER_S: Final = 12e6
SLOWED: Final = 0.1
MAX_TOKENS: Final = 8_000
#: What the scheduler is told of the engines' speed. It is not theirs; it corrects that.
TOLD: Final = {"quadratic": {"s": 0.02, "s_per_token": 1e-4}}
POLL_S: Final = 0.1
LIMIT_S: Final = 120.0


class ScheduledSite(Site):
    """With the policy that moves the threshold."""

    def __init__(self, *, models: Path, link_bytes_per_s: float = LINK_BYTES_PER_S) -> None:
        super().__init__("qwen3-next", models=models, max_model_tokens=MAX_TOKENS, chunk_tokens=1024, max_num_seqs=4)
        self.link_bytes_per_s = link_bytes_per_s
        self._folder = tempfile.TemporaryDirectory(prefix="prfaas-profile-")
        profile = Path(self._folder.name) / "cpu.yaml"
        config = Path(self.document["model"]["path"]) / "config.json"
        told = {"profile": 1, "model": "tiny", "accelerator": "cpu", "gpus_per_instance": 1, "source": "told",
                "prefill": TOLD}  # fmt: skip
        profile.write_text(yaml.safe_dump(told))
        self.document["model"]["hf_config"] = str(config)
        for cluster in self.document["clusters"].values():
            cluster["profile"] = str(profile)
        self.document["clusters"]["east"]["decode"] = {"max_batch": 4, "step": "20ms"}
        self.document["links"][0] |= {"bandwidth": f"{link_bytes_per_s * 8e-6:g}Mbps", "rtt": "1ms"}
        lengths = {"lognormal": {"mu": 8.0, "sigma": 0.6, "min": 64, "max": MAX_TOKENS}}
        self.document["workload"] = {"input_tokens": lengths, "output_tokens": 4}
        self.document["policy"] = {"kind": "prfaas"}
        self.write(yaml.safe_dump(self.document))

    def wait_ready(self) -> None:
        for engine in (self.prefill, self.decode):
            self.warm_up(engine)
        wait_until(lambda: self._lanes_up() == 4, 60.0)
        self.proxy.rate_bytes_per_s = self.link_bytes_per_s

    def close(self) -> None:
        super().close()
        self._folder.cleanup()

    def scheduler(self) -> dict[str, Any]:
        return dict(http(f"{self.gateway}/prfaas/scheduler")[0])


@dataclass(frozen=True)
class Asked:
    """One request: when it was sent, and seconds to its first token."""

    sent_s: float
    ttft_s: float
    story: dict[str, Any]

    @property
    def route(self) -> str:
        return str(self.story["route"])


@dataclass
class Clients:
    """So many ask all the time until `stop`."""

    site: Site
    num_clients: int
    done: list[Asked] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(self.num_clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        while not self._stopping.is_set():
            num_tokens = min(MAX_TOKENS - 64, max(64, round(rng.lognormvariate(8.0, 0.6))))
            sent_s = time.monotonic()
            try:
                answer = self.site.ask([rng.randrange(VOCAB_TOKENS) for _ in range(num_tokens)], 1)
                story = self.site.story(answer)
            except Exception as error:
                self.failures.append(repr(error))
                continue
            # One token: its whole answer is its first.
            self.done.append(Asked(sent_s, time.monotonic() - sent_s, story))

    def between(self, from_s: float, to_s: float) -> list[Asked]:
        return [asked for asked in list(self.done) if from_s <= asked.sent_s < to_s]


@contextlib.contextmanager
def asking(site: Site, num_clients: int) -> Iterator[Clients]:
    clients = Clients(site, num_clients)
    try:
        yield clients
    finally:
        clients.stop()


class Watch(threading.Thread):
    """What `GET /prfaas/scheduler` says, all the time."""

    def __init__(self, site: ScheduledSite) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, float, float]] = []
        self._site = site
        self._stopping = threading.Event()
        self.start()

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        while not self._stopping.wait(POLL_S):
            view = self._site.scheduler()
            threshold = view["threshold_tokens"]
            rate = view["links"][0]["bytes_per_s"]
            self.seen.append((time.monotonic(), math.inf if threshold is None else threshold, rate or math.inf))

    def threshold(self, from_s: float, to_s: float) -> float:
        """The median."""
        found = sorted(threshold for at_s, threshold, _ in self.seen if from_s <= at_s < to_s)
        return found[len(found) // 2]

    def first(self, from_s: float, *, above: float = -1.0, below: float = math.inf) -> float | None:
        """Seconds after `from_s` until the threshold is so; None if it never is."""
        hits = (at_s for at_s, threshold, _ in self.seen if at_s >= from_s and above < threshold < below)
        at_s = next(hits, None)
        return None if at_s is None else at_s - from_s


def percentile(asked: list[Asked], percent: int) -> float:
    ordered = sorted(one.ttft_s for one in asked)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def told(asked: Asked) -> str:
    """In a line."""
    story = asked.story
    phases = " ".join(f"{name} {at_s:.1f}" for name, at_s in story["phases_s"].items())
    return f"{asked.ttft_s:.1f} s, {story['prompt_tokens']} tokens, {asked.route}, {story['reason']}: {phases}"


def stay(phase_s: float, is_seen: Callable[[], bool]) -> None:
    """For a phase, and until it is seen what it is for; not for ever."""
    began_s = time.monotonic()
    while (stayed_s := time.monotonic() - began_s) < phase_s or (not is_seen() and stayed_s < phase_s + LIMIT_S):
        time.sleep(POLL_S)


def measure(models: Path, *, phase_s: float, num_clients: int, slowed: float = SLOWED) -> dict[str, Any]:
    """All phases, the link `slowed` to that share in the second. Seconds; None: the threshold never rose, or fell, half
    of the way."""
    with ScheduledSite(models=models) as site:
        with asking(site, num_clients) as clients:
            watch = Watch(site)
            wait_until(lambda: len(clients.done) > 80, 300.0)
            began_s = time.monotonic()
            time.sleep(phase_s)
            slowed_s = time.monotonic()
            usual = watch.threshold(began_s, slowed_s)
            site.proxy.rate_bytes_per_s = slowed * site.link_bytes_per_s
            stay(phase_s, lambda: watch.first(slowed_s, above=1.3 * usual) is not None)
            back_s = time.monotonic()
            slow = watch.threshold((slowed_s + back_s) / 2, back_s)
            site.proxy.rate_bytes_per_s = site.link_bytes_per_s
            stay(phase_s, lambda: watch.first(back_s, below=(usual + slow) / 2) is not None)
            ended_s = time.monotonic()
            watch.stop()
        site.document["policy"] = {"kind": "homogeneous"}
        site.rewrite()
        wait_until(lambda: not site.scheduler()["offload"], 60.0)
        with asking(site, num_clients) as local:
            local_s = time.monotonic()
            time.sleep(phase_s)
            local_ended_s = time.monotonic()
    phases = {
        "whole link": clients.between(began_s, slowed_s), "a tenth": clients.between(slowed_s, back_s),
        "whole again": clients.between(back_s, ended_s), "all local": local.between(local_s, local_ended_s),
    }  # fmt: skip
    return {
        "threshold_usual": usual,
        "threshold_slow": slow,
        "rose_s": watch.first(slowed_s, above=(usual + slow) / 2),
        "fell_s": watch.first(back_s, below=(usual + slow) / 2),
        "num_failed": len(clients.failures) + len(local.failures),
        "failures": (clients.failures + local.failures)[:3],
        "phases": {
            name: {
                "num": len(asked),
                "offloaded": sum(1 for one in asked if one.route == "remote") / len(asked),
                "ttft_s_mean": sum(one.ttft_s for one in asked) / len(asked),
                "ttft_s_p50": percentile(asked, 50),
                "ttft_s_p99": percentile(asked, 99),
                "slowest": told(max(asked, key=lambda one: one.ttft_s)),
            }
            for name, asked in phases.items()
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phase-s", type=float, default=40.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--models", type=Path, help="keep the tiny model here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.models or Path(folder), phase_s=options.phase_s, num_clients=options.clients)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
