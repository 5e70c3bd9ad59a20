"""`prfaas demo`: the paper's case study with emulated engines, under load, with the link cut in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import uvloop
import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

from prfaas.bench.e2e.client import Client, open_session
from prfaas.bench.e2e.load import Load, new_prompts
from prfaas.bench.e2e.options import E2eOptions
from prfaas.bench.e2e.plan import plan_of
from prfaas.bench.e2e.sent import Sent
from prfaas.core.planning.scenario import Scenario
from prfaas.core.planning.solution import Solution
from prfaas.core.planning.solve import solve
from prfaas.core.planning.ttft import mean_s, quantile_s, timed_routes
from prfaas.core.topology import Topology
from prfaas.demo.case_study import MODEL, PD, PRFAAS, TIME_SCALE, case_study_document
from prfaas.demo.live_view import Seen, table_of
from prfaas.demo.requests import DemoFailed
from prfaas.demo.started import started
from prfaas.deployment.fronts import Address, control_address
from prfaas.deployment.load import load_deployment
from prfaas.deployment.model import Deployment
from prfaas.deployment.topology import topology_of
from prfaas.engines.vllm.dialect import VllmDialect
from prfaas.launch.own_files import make_own_folder, open_own_file
from prfaas.launch.readiness import not_ready
from prfaas.scenario.build import build_scenario
from prfaas.simulator.results import mean, percentile

#: Of what the plan could serve.
LOAD: Final = 0.5
#: Here, not of the profiles: five times as many pass in the emulated clusters.
DURATION_S: Final = 24.0
CUT_AT_S: Final = 8.0
CUT_S: Final = 2.0
LOOK_EVERY_S: Final = 0.5
RECENT_S: Final = 10.0
READY_TIMEOUT_S: Final = 60.0
REQUEST_TIMEOUT_S: Final = 60.0


def demo(directory: Path, console: Console) -> None:
    """Raises DemoFailed, or what starting raises."""
    make_own_folder(directory)
    file = directory / "case-study.yaml"
    with open_own_file(file) as stream:
        stream.write(yaml.safe_dump(case_study_document(), sort_keys=False).encode())
    deployment = load_deployment(file)
    scenario = build_scenario(file)
    solution = solve(scenario)
    console.print("[bold]1/3[/] the case study of arXiv 2604.15039: 32 H200 prefill long prompts for 64 H20 elsewhere")
    planned = f"{solution.system_rps:.2f} requests/s; over {solution.threshold_tokens:,.0f} uncached tokens leave"
    console.print(f"  planned: {planned}; emulated at {1 / TIME_SCALE:g} times the speed", highlight=False)
    console.print("[bold]2/3[/] twelve engines, their KV nodes, the link between the clusters, and a gateway")
    with started(deployment, file, directory / "logs", console):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sent = runner.run(_Show(deployment, file, solution, console).run())
        console.print(_results(sent, scenario, solution))
        _check(sent, asyncio.run(_num_wrong(topology_of(deployment))))
        console.print("  no request failed, and no byte of KVCache was wrong; stopping every process")


class _Show:
    """The load, and what is seen meanwhile."""

    def __init__(self, deployment: Deployment, file: Path, solution: Solution, console: Console) -> None:
        self._file = file
        self._console = console
        self._topology = topology_of(deployment)
        self._url = f"http://127.0.0.1:{deployment.gateway.port}"
        self._rps = LOAD * solution.system_rps
        control = control_address(deployment)
        assert control is not None, "the file emulates its link"
        self._wan: Address = control
        self._seen = Seen()

    async def run(self) -> list[Sent]:
        """Every request that was sent, all of them over."""
        asked = f"{self._rps / TIME_SCALE:.0f} requests a second for {DURATION_S:g} s ({LOAD:.0%} of the plan)"
        trouble = f"the link is cut after {CUT_AT_S:g} s, for {CUT_S:g} s"
        self._console.print(f"[bold]3/3[/] {asked}; {trouble}", highlight=False)
        options = E2eOptions(self._url, deployment=self._file, rate_rps=self._rps, duration_s=DURATION_S)
        async with open_session(None) as session:
            client = Client(session, self._url, "/v1/completions", REQUEST_TIMEOUT_S)
            await self._wait_ready(session)
            load = await new_prompts(client, MODEL, plan_of(options))
            async with self._watching(session, client, load):
                await load.run()
        return load.sent

    @contextlib.asynccontextmanager
    async def _watching(self, session: aiohttp.ClientSession, client: Client, load: Load) -> AsyncIterator[None]:
        with Live(console=self._console, auto_refresh=False, transient=not self._console.is_terminal) as live:
            watch = asyncio.create_task(self._watch(session, client, load, live))
            trouble = asyncio.create_task(self._cut(session, client))
            try:
                yield
            finally:
                for task in (watch, trouble):
                    task.cancel()
                await asyncio.gather(watch, trouble, return_exceptions=True)

    async def _watch(self, session: aiohttp.ClientSession, client: Client, load: Load, live: Live) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError, ValueError, LookupError):
                await self._look(session, client, load)
                live.update(table_of(self._seen, f"after {self._seen.clock_s:.0f} s"), refresh=True)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _cut(self, session: aiohttp.ClientSession, client: Client) -> None:
        for at_s, value, event in (
            (CUT_AT_S, "silent", "the link is cut: what crosses it is given up, the rest stays"),
            (CUT_AT_S + CUT_S, None, "the link is back"),
        ):
            await asyncio.sleep(max(0.0, at_s - client.clock()))
            async with session.patch(f"{self._control}/links/{PRFAAS}/{PD}", json={"cut": value}) as response:
                if response.status != 200:
                    raise DemoFailed(f"the link could not be changed: {await response.text()}")
            self._seen.event = f"{client.clock():.0f} s: {event}"
            if not self._console.is_terminal:
                self._console.print(f"  {self._seen.event}", highlight=False)

    async def _look(self, session: aiohttp.ClientSession, client: Client, load: Load) -> None:
        seen, now_s = self._seen, client.clock()
        seen.clock_s = now_s
        seen.scheduler = _unscaled(await _json(session, f"{self._url}/prfaas/scheduler"))
        links = (await _json(session, f"{self._control}/links"))["links"]
        seen.link = next(link for link in links if link["from"] == PRFAAS)
        seen.busy = await self._busy(session)
        done = [one for one in load.sent if one.is_ok]
        seen.num_sent, seen.num_answered = len(load.sent), len(done)
        seen.num_failed = sum(one.outcome == "error" for one in load.sent)
        seen.routes = Counter(one.route for one in done)
        times_s = [one.ttft_s / TIME_SCALE for one in done if one.arrival_s > now_s - RECENT_S]
        seen.ttft_s_mean, seen.ttft_s_p90 = mean(times_s), percentile(sorted(times_s), 90)

    async def _busy(self, session: aiohttp.ClientSession) -> dict[str, tuple[int, int, int]]:
        dialect, found = VllmDialect(), dict[str, tuple[int, int, int]]()
        for instance in self._topology.instances:
            async with session.get(instance.engine_url + dialect.load_path) as response:
                load = dialect.read_load(response.status, await response.read())
            if load is not None:
                name = f"{instance.cluster} {instance.duty}s"
                running, waiting, places = found.get(name, (0, 0, 0))
                places += 20 if instance.duty.decodes else 1
                found[name] = running + load.running, waiting + load.waiting, places
        return found

    @property
    def _control(self) -> str:
        return f"http://{self._wan[0]}:{self._wan[1]}"

    async def _wait_ready(self, session: aiohttp.ClientSession) -> None:
        """Until every instance and every lane is up."""
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if await self._is_ready(session):
                return
            await asyncio.sleep(0.2)
        raise DemoFailed(f"not every instance and lane was up within {READY_TIMEOUT_S:g} s")

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        with contextlib.suppress(aiohttp.ClientError, ValueError, LookupError):
            gateway = await _json(session, f"{self._url}/health")
            instances = self._topology.instances
            nodes = {each.name: await _json(session, f"{each.kvnode_url}/health") for each in instances}
            return not not_ready(gateway, nodes)
        return False


async def _json(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url) as response:
        found: dict[str, Any] = await response.json(content_type=None)
        return found


def _unscaled(scheduler: dict[str, Any]) -> dict[str, Any]:
    """With waiting times as they are of the profiles."""
    clusters = {
        name: {**cluster, "waiting_s": cluster["waiting_s"] / TIME_SCALE}
        for name, cluster in scheduler["clusters"].items()
    }
    return {**scheduler, "clusters": clusters}


async def _num_wrong(topology: Topology) -> int:
    """Parts of KVCache that any engine found wrong."""
    total = 0
    async with aiohttp.ClientSession() as session:
        for instance in topology.instances:
            async with session.get(f"{instance.engine_url}/metrics") as response:
                lines = (await response.text()).splitlines()
            wrong = (line.split()[-1] for line in lines if line.startswith("prfaas_emulated_wrong_parts_total{"))
            total += sum(int(float(number)) for number in wrong)
    return total


def _results(sent: Sequence[Sent], scenario: Scenario, solution: Solution) -> Table:
    """In seconds of the profiles."""
    table = Table(title="requests by route, in seconds of the profiles", title_justify="left")
    for column in ("route", "requests", "first token: mean", "P90", "P99", "token to token"):
        table.add_column(column, justify="left" if column == "route" else "right")
    by_route: dict[str, list[Sent]] = {}
    for one in sent:
        by_route.setdefault(one.route, []).append(one)
    for name, some in [*sorted(by_route.items()), ("all", list(sent))]:
        table.add_row(name, str(len(some)), *_times([one for one in some if one.is_ok]))
    timed = timed_routes(scenario, solution)
    planned_s = mean_s(scenario, timed), quantile_s(scenario, timed, 0.9)
    table.add_row("plan, without queues", "", *(f"{seconds:.2f}" for seconds in planned_s))
    return table


def _times(answered: Sequence[Sent]) -> list[str]:
    times_s = sorted(one.ttft_s / TIME_SCALE for one in answered)
    if not times_s:
        return ["–"] * 4
    gaps_s = [one.tpot_s / TIME_SCALE for one in answered if one.tpot_s is not None]
    found = [mean(times_s), percentile(times_s, 90), percentile(times_s, 99)]
    return [*(f"{value or 0.0:.2f}" for value in found), f"{mean(gaps_s) or 0.0:.3f}"]


def _check(sent: Sequence[Sent], num_wrong: int) -> None:
    failed = [one for one in sent if not one.is_ok]
    if failed:
        first = failed[0]
        raise DemoFailed(f"{len(failed)} of {len(sent)} requests were not answered: {first.outcome}, {first.detail}")
    if not any(one.route == "remote" for one in sent):
        raise DemoFailed("nothing was prefilled in the PrfaaS cluster")
    if num_wrong:
        raise DemoFailed(f"{num_wrong} pages or states of KVCache were not what they must be")
