"""A gateway's membership follows the deployment file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from prfaas.core.topology import Topology, topology_change
from prfaas.deployment.model import Deployment
from prfaas.gateway.discovery.file import FileDiscovery, read_served
from prfaas.scenario.served_policy import ServedPolicy
from prfaas.testing.gateway_rig import until as rig_until

HANG_S = 30.0


def endpoint(number: int, more: str = "") -> str:
    return f"    - {{engine: 'http://h{number}:1', kvnode: 'http://h{number}:2', lanes: 'h{number}:3'{more}}}\n"


GOOD = (
    "model: {name: m, path: m, max_model_tokens: 8}\n"
    f"clusters:\n  west:\n    role: prfaas\n    endpoints:\n{endpoint(0)}"
    f"  east:\n    role: pd\n    endpoints:\n{endpoint(1)}{endpoint(2)}"
    "policy: {kind: fixed, routing_threshold_tokens: 100}\n"
    "gateway: {port: 8000}\n"
)

Change = tuple[Topology, ServedPolicy, Deployment]


@contextlib.asynccontextmanager
async def discovered(path: Path) -> AsyncIterator[tuple[FileDiscovery, list[Change]]]:
    found: list[Change] = []
    write(path, GOOD)
    discovery = FileDiscovery(path, read_served(path), lambda *change: found.append(change), poll_s=0.02)
    task = asyncio.create_task(discovery.run())
    try:
        yield discovery, found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    await rig_until(condition, HANG_S)


def write(path: Path, text: str) -> None:
    path.write_text(text)


def names(topology: Topology) -> list[str]:
    return [instance.name for instance in topology.instances]


async def _members(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with discovered(path) as (_, found):
        write(path, GOOD.replace(endpoint(2), endpoint(2, ", duty: decode") + endpoint(3, ", name: new")))
        await until(lambda: len(found) == 1)
        assert names(found[0][0]) == ["west-0", "east-0", "east-1", "new"]
        write(path, GOOD.replace(endpoint(2), ""))
        await until(lambda: len(found) == 2)
    change = topology_change(found[0][0], found[1][0])
    assert [instance.name for instance in change.removed] == ["east-1", "new"]
    assert "instance new came: duty=both engine=http://h3:1" in caplog.text
    assert "instance east-1 has another duty now: decode" in caplog.text
    assert "instance new left" in caplog.text


def test_instances_come_and_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each is told in the log."""
    caplog.set_level("INFO")
    asyncio.run(_members(tmp_path / "d.yaml", caplog))


async def _policy(path: Path) -> None:
    async with discovered(path) as (_, found):
        write(path, GOOD.replace("tokens: 100", "tokens: 7"))
        await until(lambda: len(found) == 1)
        write(path, GOOD.replace("kind: fixed, routing_threshold_tokens: 100", "kind: homogeneous"))
        await until(lambda: len(found) == 2)
    assert (found[0][1].offload, found[0][1].threshold_tokens) == (True, 7)
    assert not found[1][1].offload


def test_the_policy_follows_the_file(tmp_path: Path) -> None:
    """Another threshold, and then none."""
    asyncio.run(_policy(tmp_path / "d.yaml"))


async def _refused(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with discovered(path) as (_, found):
        write(path, GOOD.replace("role: pd", "role: dp"))
        await until(lambda: "d.yaml:8: clusters.east.role: " in caplog.text)
        write(path, GOOD.replace("name: m, ", ""))
        await until(lambda: "d.yaml:1: model.name: missing; add it" in caplog.text)
        assert found == []


def test_a_bad_file_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And is told with its line."""
    asyncio.run(_refused(tmp_path / "d.yaml", caplog))


async def _kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with discovered(path) as (_, found):
        changed = GOOD.replace("port: 8000", "port: 9000, max_inflight_requests: 5").replace("name: m,", "name: n,")
        write(path, changed)
        await until(lambda: len(found) == 1)
    deployment = found[0][2]
    assert (deployment.gateway.port, deployment.model.name) == (8000, "m")
    assert deployment.gateway.max_inflight_requests == 5
    assert "need a restart and stay as they were: model.name, gateway.port" in caplog.text


def test_what_cannot_change_is_kept_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The rest of the file is taken over."""
    asyncio.run(_kept(tmp_path / "d.yaml", caplog))


async def _same(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with discovered(path) as (discovery, found):
        write(path, "# a comment\n" + GOOD)
        await until(lambda: "nothing of it changes what is served" in caplog.text)
        caplog.clear()
        discovery.poke()
        await until(lambda: "nothing of it changes what is served" in caplog.text)
        assert found == []


def test_a_file_that_means_the_same_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A comment, or a poke."""
    caplog.set_level("INFO")
    asyncio.run(_same(tmp_path / "d.yaml", caplog))
