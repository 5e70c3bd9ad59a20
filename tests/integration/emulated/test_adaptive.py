"""What moves in the scheduler, on processes: the short form of `python -m benchmarks.case_study.adaptive`. Gateway, nodes
and lanes are the real ones; engines and the link are emulated. Only directions are asserted, whatever the machine."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from prfaas.bench.e2e.client import Client, open_session
from prfaas.bench.e2e.load import Load, new_prompts
from prfaas.bench.e2e.options import E2eOptions
from prfaas.bench.e2e.plan import plan_of
from prfaas.bench.e2e.sent import CANCELLED, Sent
from prfaas.core.planning.solve import solve
from prfaas.deployment.fronts import control_address
from prfaas.deployment.load import load_deployment
from prfaas.launch.addresses import free_ports_in_a_row
from prfaas.launch.plan import ProcessSpec
from prfaas.scenario.build import build_scenario
from prfaas.testing.deployed import http
from prfaas.testing.emulated_site import MODEL_NAME, EmulatedSite, emulated_document
from prfaas.testing.node_pair import wait_until
from prfaas.wan.client import change

pytestmark = pytest.mark.slow

HANG_S = 600.0
TIME_SCALE = 0.2
NUM_REQUESTS = 4_000

#: The slow timescale looks at minutes of load. This gateway looks at seconds, by the same rules.
HASTY = """
from prfaas.core.control import rebalance, stage_loads
rebalance.MIN_SEEN_S, rebalance.MIN_SEEN_LENGTHS = 3.0, 64
rebalance.LOOK_EVERY_S, rebalance.SAMPLE_EVERY_S = 1.0, 0.25
stage_loads.HALF_LIFE_S = 2.0
from prfaas.cli.entry import main
main()
"""


class HastySite(EmulatedSite):
    """Its gateway decides about duties within seconds."""

    def plan(self) -> dict[str, ProcessSpec]:
        specs = super().plan()
        gateway = specs["gateway"]
        return {**specs, "gateway": replace(gateway, argv=(sys.executable, "-c", HASTY, *gateway.argv[3:]))}


def document(output_tokens: int = 128, **more: Any) -> dict[str, Any]:
    """Two instances far away; two here that prefill and two that decode, unless it says otherwise."""
    numbers = {"num_prfaas": 2, "num_prefill": 2, "num_decode": 2, "policy": {"kind": "prfaas"}, **more}
    made = emulated_document(emulation={"time_scale": TIME_SCALE}, **numbers)
    made["workload"]["output_tokens"] = output_tokens
    return made


@contextmanager
def loaded(site: EmulatedSite, file: Path, rate_rps: float) -> Iterator[list[Sent]]:
    """Requests as that file has them, so many a second of the real deployment; every one that was begun."""
    options = E2eOptions(site.gateway, deployment=file, rate_rps=rate_rps, num_requests=NUM_REQUESTS)
    begun: list[Load] = []
    stop: list[Any] = []

    async def run() -> None:
        stopping = asyncio.Event()
        async with open_session(None) as session:
            client = Client(session, site.gateway, "/v1/completions", HANG_S)
            load = await new_prompts(client, MODEL_NAME, plan_of(options), prompt_seed=0)
            running = asyncio.create_task(load.run())
            stop.append((asyncio.get_running_loop(), stopping))
            begun.append(load)
            await stopping.wait()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        wait_until(lambda: begun, HANG_S)
        yield begun[0].sent
    finally:
        loop, stopping = stop[0]
        loop.call_soon_threadsafe(stopping.set)
        thread.join(HANG_S)


def scheduler(site: EmulatedSite) -> dict[str, Any]:
    return dict(http(f"{site.gateway}/prfaas/scheduler")[0])


def failures(sent: Sequence[Sent]) -> list[str]:
    """Of those that were not given up at the end."""
    return [f"{one.failure}: {one.detail}" for one in sent if not one.is_ok and one.outcome != CANCELLED]


def is_near(site: EmulatedSite, tokens: float, distance: float) -> bool:
    """In three looks, one after the other. There is no threshold while nobody far away answers probes."""
    for _ in range(3):
        now = scheduler(site)["threshold_tokens"]
        if now is None or abs(now - tokens) >= distance:
            return False
        time.sleep(0.5)
    return True


def written(document: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_a_wrong_split_becomes_right_and_stays(tmp_path: Path) -> None:
    """Three prefill and one decodes, of which two should: one is converted, and no other in the seconds after it, in
    which many looks ask whether another one should be."""
    wrong = document(1024, num_prefill=3, num_decode=1, policy={"kind": "prfaas", "cool_down": "10s"})
    wrong["clusters"]["east"]["convertible"] = True
    right = solve(build_scenario(written(document(1024), tmp_path / "right.yaml")))
    with HastySite(wrong) as site, loaded(site, site.file, 1.1 * right.system_rps) as sent:
        converted = wait_until(lambda: [c for c in scheduler(site)["conversions"] if c["phase"] == "done"], HANG_S)
        assert (converted[0]["from_duty"], converted[0]["to_duty"]) == ("prefill", "decode")
        time.sleep(5.0)
        assert len(scheduler(site)["conversions"]) == 1, scheduler(site)["conversions"]
        duties = sorted(m["duty"] for m in site.members().values() if m["cluster"] == "east")
        assert duties == ["decode", "decode", "prefill", "prefill"]
        answered = sum(one.is_ok for one in sent)
        wait_until(lambda: sum(one.is_ok for one in sent) > answered + 10, HANG_S)
    assert failures(sent) == []


def test_a_threshold_that_begins_wrong_comes_to_the_plan(tmp_path: Path) -> None:
    """The file speaks of far shorter prompts than come. When enough have come the threshold is solved from them: more than
    half of the way to the plan for those that come is gone."""
    wrong = document()
    wrong["workload"]["input_tokens"]["lognormal"]["mu"] = 8.4
    file = written(document(), tmp_path / "right.yaml")
    right = solve(build_scenario(file))
    with EmulatedSite(wrong) as site:
        began = scheduler(site)["threshold_tokens"]
        distance = right.threshold_tokens - began
        assert distance > began, "the test begins far away"
        with loaded(site, file, 0.8 * right.system_rps) as sent:
            wait_until(lambda: is_near(site, right.threshold_tokens, distance / 2), HANG_S)
        assert failures(sent) == []


def test_a_link_that_falls_gets_less_and_then_more_again() -> None:
    """Its expected rate falls and comes back, and so does the share of the prompts that leave."""
    slow = document()
    slow["links"][0]["emulated_at"] = f"127.0.0.1:{free_ports_in_a_row(5) + 1}"
    with EmulatedSite(slow) as site:
        deployment = load_deployment(site.file)
        control = control_address(deployment)
        assert control is not None
        planned = solve(build_scenario(site.file))
        whole = scheduler(site)["links"][0]["given_bytes_per_s"]
        with loaded(site, site.file, 0.6 * planned.system_rps) as sent:
            before = wait_until(lambda: latest_share(sent, 0), HANG_S)
            change(control, "west", "east", {"bandwidth": f"{whole * 8e-6 / 50:.3f}Mbps"})
            wait_until(lambda: scheduler(site)["links"][0]["bytes_per_s"] < whole / 5, HANG_S)
            fell = len(sent)
            wait_until(lambda: (latest_share(sent, fell) or 1.0) < before - 0.2, HANG_S)
            change(control, "west", "east", {"bandwidth": f"{whole * 8e-6:.3f}Mbps"})
            back = len(sent)
            wait_until(lambda: (latest_share(sent, back) or 0.0) > before - 0.1, HANG_S)
            assert scheduler(site)["links"][0]["bytes_per_s"] > whole / 20
        assert failures(sent) == []


def latest_share(sent: Sequence[Sent], first: int, num: int = 24) -> float | None:
    """Of the last so many answered requests from that number on, those that were prefilled far away; None while there are
    fewer."""
    some = list(sent[first:])
    assert failures([one for one in some if one.over_s == one.over_s]) == []
    answered = [one for one in some if one.is_ok][-num:]
    return None if len(answered) < num else sum(one.route == "remote" for one in answered) / num
