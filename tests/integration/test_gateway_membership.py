"""A running gateway follows its deployment file: requests that it has go on, new ones go where the file says."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import yaml

from prfaas.gateway.discovery.file import FileDiscovery, read_served
from prfaas.testing.gateway_rig import Rig, gateway_rig, until, write_tiny_model

HANG_S = 30.0
Edit = Callable[[dict[str, Any]], object]


class Followed:
    """A rig, and the file that its gateway follows."""

    def __init__(self, rig: Rig, path: Path) -> None:
        self.rig, self._path = rig, path
        self._values = rig.service.deployment.model_dump(mode="json", by_alias=True, exclude_none=True)
        self.edit(lambda values: None)

    def edit(self, edit: Edit) -> None:
        """Change the file."""
        edit(self._values)
        self._path.write_text(yaml.safe_dump(self._values))

    async def have(self, *names: str) -> None:
        """Let the PD cluster have these instances, and wait until the gateway uses them. Even numbers are names of the
        first decoder, odd ones of the second."""
        pairs = list(zip(self.rig.decoders, self.rig.decode_nodes, strict=True))
        made = []
        for name in names:
            engine, node = pairs[int(name.removeprefix("pd-")) % 2]
            made.append({"name": name, "engine": engine.url, "kvnode": node.url, "lanes": f"{node.name}:1"})
        self.edit(lambda values: values["clusters"]["pd"].update(endpoints=made))
        await until(lambda: self.members() == set(names), HANG_S)
        await until(lambda: all(self.rig.service.fleet.instances[name].engine_healthy for name in names), HANG_S)

    def members(self) -> set[str]:
        """PD instances of the topology in force."""
        return {member.name for member in self.rig.service.fleet.topology.instances_of("pd")}


@contextlib.asynccontextmanager
async def followed(folder: Path) -> AsyncIterator[Followed]:
    write_tiny_model(folder)
    async with asyncio.timeout(120), gateway_rig(folder, num_decoders=2) as rig:
        path = folder / "deployment.yaml"
        found = Followed(rig, path)
        discovery = FileDiscovery(path, read_served(path), rig.app.membership.change, poll_s=0.02)
        task = asyncio.create_task(discovery.run())
        try:
            yield found
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def served_by(rig: Rig) -> str:
    reply, _ = await rig.complete(prompt="a b c", max_tokens=4)
    assert reply.status == 200
    return str((await rig.story(reply))["decode_instance"])


async def health_of(rig: Rig) -> dict[str, dict[str, bool]]:
    async with rig.session.get(f"{rig.url}/health") as reply:
        return dict((await reply.json())["instances"])


async def instances_in_metrics(rig: Rig) -> set[str]:
    """Of which instances a probe's figures are shown."""
    async with rig.session.get(f"{rig.url}/metrics") as reply:
        probed = re.findall(r'^prfaas_(?:engine|node|prefix)_\w+{instance="([^"]+)"', await reply.text(), re.MULTILINE)
    return set(probed)


async def _leaves(folder: Path) -> None:
    async with followed(folder) as file:
        rig = file.rig
        assert file.members() == {"pd-0", "pd-1"}
        rig.decoders[0].faults.decode = rig.decoders[1].faults.decode = "stall"
        waiting = asyncio.create_task(rig.complete(prompt="a b c", max_tokens=4))
        await until(lambda: any(engine.seen for engine in rig.decoders), HANG_S)
        busy = next(index for index, engine in enumerate(rig.decoders) if engine.seen)
        left, stays = f"pd-{busy}", f"pd-{1 - busy}"
        await file.have(stays)
        assert rig.service.fleet.instances[left].num_inflight == 1
        leaving = {name: seen["leaving"] for name, seen in (await health_of(rig)).items() if name in (left, stays)}
        assert leaving == {left: True, stays: False}
        assert {left, stays} & await instances_in_metrics(rig) == {stays}
        rig.decoders[1 - busy].faults.decode = "none"
        assert {await served_by(rig) for _ in range(4)} == {stays}
        rig.decoders[busy].release.set()
        reply, body = await waiting
        assert reply.status == 200
        assert body["choices"][0]["text"]
        assert (await rig.story(reply))["decode_instance"] == left
        await until(lambda: left not in rig.service.fleet.instances, HANG_S)
        assert left not in await health_of(rig)


def test_an_instance_that_leaves_answers_what_it_has(tmp_path: Path) -> None:
    """It gets nothing new meanwhile, and is forgotten when it has nothing left."""
    asyncio.run(_leaves(tmp_path))


async def _comes(folder: Path) -> None:
    async with followed(folder) as file:
        await file.have("pd-0")
        assert await served_by(file.rig) == "pd-0"
        await file.have("pd-3")
        assert await served_by(file.rig) == "pd-3"
        await file.have("pd-0", "pd-3")
        file.rig.decoders[1].faults.healthy = False
        await until(lambda: not file.rig.service.fleet.instances["pd-3"].engine_healthy, HANG_S)
        assert await served_by(file.rig) == "pd-0"


def test_an_instance_that_comes_is_probed_and_used(tmp_path: Path) -> None:
    """One that nobody knew, and one that had left before."""
    asyncio.run(_comes(tmp_path))


async def _threshold(folder: Path) -> None:
    async with followed(folder) as file:
        rig, prompt = file.rig, " ".join("abcdefgh" * 4)
        assert (await rig.complete(prompt=prompt, max_tokens=4))[0].headers["x-prfaas-route"] == "remote"
        file.edit(lambda values: values["policy"].update(routing_threshold_tokens=1000))
        await until(lambda: rig.service.scheduler.policy.threshold_tokens == 1000, HANG_S)
        reply, _ = await rig.complete(prompt=prompt + " z", max_tokens=4)
        assert reply.headers["x-prfaas-route"] == "local"


def test_another_threshold_holds_for_the_next_request(tmp_path: Path) -> None:
    """Without a restart."""
    asyncio.run(_threshold(tmp_path))
