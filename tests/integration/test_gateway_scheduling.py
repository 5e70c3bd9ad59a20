"""The gateway with a policy that moves the threshold by itself: what clients and operators see of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from prfaas.core.model.curve import polynomial
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.scenario.served_policy import ServedPolicy
from prfaas.testing.gateway_rig import Rig, gateway_rig, until, write_tiny_model

#: A thousand tokens take a second where they stay, and a twentieth of it where they go.
MODEL = ServingModel(
    {"prfaas": ClusterModel(polynomial(0.0, 5e-5)), "pd": ClusterModel(polynomial(0.0, 1e-3), 16, 0.001)},
    kv_bytes=polynomial(0.0, 10.0),
    output_tokens=8.0,
)
#: Forty times as slow, so that whoever waits does not lose patience during a test.
SLOW = replace(
    MODEL,
    clusters={"prfaas": ClusterModel(polynomial(0.0, 2e-3)), "pd": ClusterModel(polynomial(0.0, 4e-2), 16, 0.001)},
)
LONG, SHORT = "x" * 1_000, "y" * 20


@asynccontextmanager
async def rig_of(
    folder: Path, *, model: ServingModel = MODEL, max_ttft_s: float | None = None, **more: Any
) -> AsyncIterator[Rig]:
    write_tiny_model(folder)
    served = ServedPolicy(True, 500, "as a test says", model, max_ttft_s)
    async with asyncio.timeout(120), gateway_rig(folder, served=served, **more) as rig:
        yield rig


async def scheduler(rig: Rig) -> dict[str, Any]:
    """GET /prfaas/scheduler."""
    async with rig.session.get(f"{rig.url}/prfaas/scheduler") as reply:
        assert reply.status == 200
        answer: dict[str, Any] = await reply.json()
        return answer


def num_waiting(rig: Rig) -> int:
    dispatch = rig.service.scheduler.dispatch
    assert dispatch is not None
    return sum(map(len, dispatch.queues.values()))


def test_each_prompt_goes_where_its_answer_begins_first(tmp_path: Path) -> None:
    """And its story says what each way was expected to take."""

    async def main() -> None:
        async with rig_of(tmp_path) as rig:
            routes = {}
            for name, prompt in (("long", LONG), ("short", SHORT)):
                reply, answer = await rig.complete(prompt=prompt, max_tokens=4)
                assert reply.status == 200, answer
                story = await rig.story(reply)
                routes[name] = story["route"]
                ways = {option["kind"]: option for option in story["options"]}
                assert set(ways) == {"local", "remote"}
                assert ways["remote"]["num_prefill_tokens"] == len(prompt)
                costs = {kind: way["wait_s"] + way["prefill_s"] + way["transfer_s"] for kind, way in ways.items()}
                assert story["route"] == min(costs, key=lambda kind: costs[kind])
            assert routes == {"long": "remote", "short": "local"}

    asyncio.run(main())


def test_operators_see_thresholds_queues_and_links(tmp_path: Path) -> None:
    """At the admin page and in the metrics; a policy that stands still shows its threshold alone."""

    async def main() -> None:
        async with rig_of(tmp_path) as rig:
            await rig.complete(prompt=LONG, max_tokens=4)
            seen = await scheduler(rig)
            assert (seen["moves"], seen["threshold_tokens"], seen["num_lengths_seen"]) == (True, 500, 1)
            assert 20 < seen["clusters"]["prfaas"]["threshold_tokens"] < 1_000
            assert seen["clusters"]["prfaas"]["num_waiting"] == 0
            assert [(link["source"], link["target"], link["bytes_per_s"]) for link in seen["links"]] == [
                ("prfaas", "pd", None)
            ]
            threshold = await rig.metric('prfaas_routing_threshold_tokens{cluster="prfaas"}')
            assert threshold == seen["clusters"]["prfaas"]["threshold_tokens"]
            assert await rig.metric('prfaas_prefill_time_factor{cluster="prfaas"}') > 0
            rig.app.membership.change(
                rig.service.fleet.topology, ServedPolicy(True, 70, "it stands still"), rig.service.deployment
            )
            seen = await scheduler(rig)
            assert (seen["moves"], seen["threshold_tokens"], seen["clusters"]) == (False, 70, {})
            async with rig.session.get(f"{rig.url}/metrics") as reply:
                assert "prfaas_routing_threshold_tokens{" not in await reply.text()

    asyncio.run(main())


def test_what_waits_behind_an_engine_that_hangs_is_answered_elsewhere(tmp_path: Path) -> None:
    """The first prompt stands still; the others wait for the same instance, and do not wait for ever."""

    async def main() -> None:
        async with rig_of(tmp_path, transfer={"deadline": "20s"}) as rig:
            rig.prefillers[0].faults.prefill = "stall"
            asked = [asyncio.create_task(rig.complete(prompt=LONG + str(n), max_tokens=4)) for n in range(4)]
            await until(lambda: num_waiting(rig) > 0)
            answers = [await task for task in asked[1:]]
            assert [reply.status for reply, _ in answers] == [200, 200, 200]
            stories = [await rig.story(reply) for reply, _ in answers]
            assert {story["route"] for story in stories} == {"local"}
            assert not rig.prefillers[0].release.is_set()
            rig.prefillers[0].release.set()
            await asked[0]
            await until(lambda: rig.num_live_landings == 0)

    asyncio.run(main())


def test_a_client_that_leaves_while_waiting_leaves_nothing(tmp_path: Path) -> None:
    """The queue is empty at once, and the others are served."""

    async def main() -> None:
        async with rig_of(tmp_path, model=SLOW) as rig:
            rig.prefillers[0].faults.prefill = "stall"
            first = asyncio.create_task(rig.complete(prompt=LONG, max_tokens=4))
            await until(lambda: len(rig.prefillers[0].legs("prefill")) == 1)
            second = asyncio.create_task(rig.complete(prompt=LONG + "y", max_tokens=4))
            await until(lambda: num_waiting(rig) == 1)
            second.cancel()
            await until(lambda: num_waiting(rig) == 0)
            rig.prefillers[0].release.set()
            assert (await first)[0].status == 200
            await until(lambda: not rig.service.scheduler.requests)

    asyncio.run(main())


def test_who_would_be_answered_too_late_is_told_at_once(tmp_path: Path) -> None:
    """By the policy's bound or by the request's own: 429, when to come again, and nothing reaches an engine."""

    async def main() -> None:
        async with rig_of(tmp_path, max_ttft_s=0.01) as rig:
            reply, answer = await rig.complete(prompt=LONG, max_tokens=4)
            assert (reply.status, answer["error"]["code"], reply.headers["retry-after"]) == (429, "too_busy", "1")
            assert "is expected to begin" in answer["error"]["message"]
            assert not rig.prefillers[0].seen and not rig.decoders[0].legs("fresh")
            assert await rig.metric('prfaas_requests_total{outcome="unavailable",route="remote"}') == 1.0
        async with rig_of(tmp_path) as rig:
            body = {"model": "tiny", "prompt": LONG, "max_tokens": 4}
            for bound, status in (("1", 429), ("60000", 200), ("soon", 400), ("0", 400), ("3600001", 400)):
                headers = {"x-prfaas-max-ttft-ms": bound}
                async with rig.session.post(f"{rig.url}/v1/completions", json=body, headers=headers) as reply:
                    assert reply.status == status, (bound, await reply.text())

    asyncio.run(main())


def test_tenants_and_priorities_reach_the_queue(tmp_path: Path) -> None:
    """A tenant is an API key; the field `priority` counts only where the deployment says so."""

    async def order(*, trusts: bool) -> list[str]:
        async with rig_of(tmp_path, model=SLOW, gateway={"trust_priority": trusts}) as rig:
            rig.prefillers[0].faults.prefill = "stall"
            asked = []
            for name, key, priority in (("first", "k1", 0), ("a1", "k1", 0), ("a2", "k1", 0), ("b1", "k2", 0),
                                        ("urgent", "k1", -5)):  # fmt: skip
                body = {"model": "tiny", "prompt": LONG + name, "max_tokens": 4, "priority": priority}
                headers = {"authorization": f"Bearer {key}", "x-request-id": name}
                asked.append(asyncio.create_task(_post(rig, body, headers)))
                await until(lambda name=name: name in rig.service.scheduler.requests)
                await until(lambda name=name: rig.service.scheduler.requests[name].state != "counting")
            dispatch = rig.service.scheduler.dispatch
            assert dispatch is not None
            waiting = [name for queue in dispatch.queues.values() for name in queue]
            rig.prefillers[0].release.set()
            await asyncio.gather(*asked)
            return waiting

    async def main() -> None:
        assert await order(trusts=False) == ["a1", "b1", "a2", "urgent"]
        assert await order(trusts=True) == ["urgent", "a1", "b1", "a2"]

    asyncio.run(main())


async def _post(rig: Rig, body: dict[str, Any], headers: dict[str, str]) -> None:
    async with rig.session.post(f"{rig.url}/v1/completions", json=body, headers=headers) as reply:
        assert reply.status == 200, await reply.text()
