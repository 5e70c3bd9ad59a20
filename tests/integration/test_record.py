"""Record, replay, compare: requests of a running gateway become a trace that `plan` and `simulate` read."""

from __future__ import annotations

import asyncio
import json
import random
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from prfaas.core.planning.trace import read_trace
from prfaas.observe.recording import BLOCK_TOKENS
from prfaas.recorder.command import PAGE, RecordOptions, _Progress, _write, run
from prfaas.simulator.command import SimulateOptions
from prfaas.simulator.command import run as simulate
from prfaas.simulator.loads import LoadOptions
from prfaas.testing.gateway_rig import Rig, gateway_rig, write_tiny_model

CASE_STUDY = Path(__file__).parents[2] / "examples" / "case-study" / "prfaas.yaml"
SECRET = "the words of a client"


async def answered(rig: Rig, prompt: str, **more: Any) -> None:
    reply, answer = await rig.complete(prompt=prompt, max_tokens=4, **more)
    assert reply.status == 200, answer


def test_a_recorded_trace_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lengths and prefixes are those that were sent; no word of a prompt is in the file; the simulator runs it."""
    out = tmp_path / "recorded.jsonl"
    rng = random.Random(1)
    begin = SECRET + "".join(rng.choice("abcdefgh") for _ in range(2 * BLOCK_TOKENS))

    async def main() -> None:
        write_tiny_model(tmp_path)
        async with asyncio.timeout(120), gateway_rig(tmp_path, gateway={"record": True}) as rig:
            for length in (100, 300, 2_000):
                await answered(rig, begin + "".join(rng.choice("abcdefgh") for _ in range(length)))
                await asyncio.sleep(0.05)
            assert await asyncio.to_thread(run, RecordOptions(rig.url, out)) == 0

    asyncio.run(main())
    text = out.read_text()
    assert SECRET not in text
    assert capsys.readouterr().err.startswith(f"{out}: 3 requests, in blocks of {BLOCK_TOKENS} tokens")
    traced = read_trace(text.splitlines(), block_tokens=BLOCK_TOKENS)
    assert [one.input_tokens for one in traced] == [len(begin) + more for more in (100, 300, 2_000)]
    assert [one.uncached_tokens for one in traced][1:] == [one.input_tokens - 2 * BLOCK_TOKENS for one in traced[1:]]
    assert simulate(SimulateOptions(CASE_STUDY, load=LoadOptions(trace=out), as_json=True)) == 0
    assert "3 requests of recorded.jsonl" in json.loads(capsys.readouterr().out)["load"]


def test_times_are_those_of_arrival_whoever_ends_first(tmp_path: Path) -> None:
    """A page in the order of ends, as a gateway gives it."""
    lines: list[dict[str, Any]] = [{"timestamp": ms, "input_length": 1, "output_length": 1, "hash_ids": [], "block_tokens": 0}
             for ms in (50_000, 0, 20_000, 60_000)]  # fmt: skip
    page = {"life": "a", "next": 4, "lost": 0, "without_usage": 0, "left_out": 0, "requests": lines}
    out = StringIO()
    _write(out, page, _Progress())
    assert [json.loads(line)["timestamp"] for line in out.getvalue().splitlines()] == [50_000, 0, 20_000, 60_000]


def test_pages_are_asked_for_in_numbers(tmp_path: Path) -> None:
    """Not too large ones, however they are written; and with GET."""

    async def main() -> None:
        write_tiny_model(tmp_path)
        async with asyncio.timeout(120), gateway_rig(tmp_path, gateway={"record": True}) as rig:
            for query in ("most=0", "most=1001", "most=00000000000000001999999", "after=-1", "after=" + "9" * 5_000):
                async with rig.session.get(f"{rig.url}/prfaas/trace?{query}") as reply:
                    assert reply.status == 400, query
            async with rig.session.post(f"{rig.url}/prfaas/trace") as reply:
                assert reply.status == 405

    asyncio.run(main())


def test_more_than_a_page(tmp_path: Path) -> None:
    """None is lost, none is there twice."""
    out = tmp_path / "recorded.jsonl"

    async def main() -> None:
        write_tiny_model(tmp_path)
        async with asyncio.timeout(120), gateway_rig(tmp_path, gateway={"record": True}) as rig:
            for number in range(PAGE // 20 + 1):
                await asyncio.gather(*(answered(rig, "x" * (10 + number)) for _ in range(20)))
            assert await asyncio.to_thread(run, RecordOptions(rig.url, out)) == 0

    asyncio.run(main())
    lengths = [json.loads(line)["input_length"] for line in out.read_text().splitlines()]
    assert sorted(lengths) == sorted(10 + number for number in range(PAGE // 20 + 1) for _ in range(20))


def test_what_cannot_be_recorded_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gateway that records nothing yet or not at all, none at all, and a file that cannot be written; a file that is
    there stays as it was."""
    out = tmp_path / "recorded.jsonl"
    out.write_text("mine")

    async def main() -> None:
        write_tiny_model(tmp_path)
        async with asyncio.timeout(120), gateway_rig(tmp_path) as rig:
            assert await asyncio.to_thread(run, RecordOptions(rig.url, out)) == 1
            assert "set gateway.record" in capsys.readouterr().err
        async with asyncio.timeout(120), gateway_rig(tmp_path, gateway={"record": True}) as rig:
            assert await asyncio.to_thread(run, RecordOptions(rig.url, out)) == 1
            assert "nothing was recorded yet" in capsys.readouterr().err
            await answered(rig, "x" * 20)
            assert await asyncio.to_thread(run, RecordOptions(rig.url, tmp_path / "no" / "file")) == 2
            assert "No such file or directory" in capsys.readouterr().err
        assert run(RecordOptions(rig.url, out)) == 1
        assert "no gateway answers there" in capsys.readouterr().err
        assert run(RecordOptions("file:///etc/hosts", out)) == 2
        assert "not a URL" in capsys.readouterr().err

    asyncio.run(main())
    assert out.read_text() == "mine"
