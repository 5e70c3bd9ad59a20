"""`prfaas bench e2e` as a process, against the real gateway before fake engines, and against an engine that fails."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prfaas.testing.fake_engine import EngineFaults, FakeEngine, answer_text
from prfaas.testing.gateway_rig import MODEL, Rig, gateway_rig, until, write_tiny_model

#: Hangs end so; nothing here is about how fast this machine is.
PATIENCE_S = 300.0
FEW = ("--input-tokens", "20", "--output-tokens", "4", "--rate", "100", "--num-requests", "12", "--warm-up", "0")


@dataclass
class Told:
    """What a run said."""

    status: int
    out: str
    err: str
    lines: list[dict[str, Any]]

    @property
    def run(self) -> dict[str, Any]:
        """The only run of the JSON object."""
        assert self.out, self.err
        (run,) = json.loads(self.out)["runs"]
        return dict(run)


async def begin(url: str, out: Path, *more: str, **process: Any) -> asyncio.subprocess.Process:
    # A shell that runs this in the background has Ctrl-C ignored, and processes inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "prfaas", "bench", "e2e", url, "--json", "--requests", str(out), *more,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **process,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)


async def end(process: asyncio.subprocess.Process, out: Path) -> Told:
    stdout, stderr = await process.communicate()
    assert b"Traceback" not in stderr, stderr.decode()
    return Told(int(process.returncode or 0), stdout.decode(), stderr.decode(), lines_of(out))


def lines_of(out: Path) -> list[dict[str, Any]]:
    """None, if nothing was written."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


async def bench(url: str, out: Path, *more: str, **process: Any) -> Told:
    return await end(await begin(url, out, *more, **process), out)


def behind_gateway(tmp_path: Path, scenario: Callable[[Rig, Path], Awaitable[None]], **settings: Any) -> None:
    """A deployment whose gateway offloads prompts of more than 8 tokens."""

    async def main() -> None:
        write_tiny_model(tmp_path)
        async with asyncio.timeout(PATIENCE_S), gateway_rig(tmp_path, **settings) as rig:
            await scenario(rig, tmp_path / "requests.jsonl")

    asyncio.run(main())


def alone(tmp_path: Path, scenario: Callable[[FakeEngine, Path], Awaitable[None]], **faults: Any) -> None:
    """One engine, which lists no models."""

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), FakeEngine(faults=EngineFaults(**faults)) as engine:
            await scenario(engine, tmp_path / "requests.jsonl")

    asyncio.run(main())


def test_a_trace_through_the_gateway(tmp_path: Path) -> None:
    """Prompts have the trace's lengths and share its prefixes; answers tell route and story."""
    trace = tmp_path / "trace.jsonl"
    rows = [(0, 40, 3, [1, 2, 3]), (10, 36, 2, [1, 2, 4]), (20, 5, 4, [5]), (30, 40, 3, [1, 2, 3])]
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    trace.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))

    async def scenario(rig: Rig, out: Path) -> None:
        told = await bench(rig.url, out, "--trace", str(trace), "--block-tokens", "16", "--warm-up", "0")
        assert told.status == 0, told.err
        prompts = [seen.body["prompt"] for seen in sorted(rig.decoders[0].seen, key=lambda s: s.body["max_tokens"])]
        by_length = {len(prompt): prompt for prompt in prompts}
        assert sorted(len(prompt) for prompt in prompts) == [5, 36, 40, 40]
        assert by_length[40][:32] == by_length[36][:32]
        assert by_length[40][32:36] != by_length[36][32:]
        assert [prompt for prompt in prompts if len(prompt) == 40] == 2 * [by_length[40]]
        run = told.run
        # On a slow machine the first is done before the others come, which share its prefix and then stay.
        routes = Counter(line["route"] for line in told.lines)
        assert routes["remote"] >= 1
        assert (run["num_requests"], run["num_completed"], run["offload_fraction"]) == (4, 4, routes["remote"] / 4)
        assert {name: of["num_completed"] for name, of in run["routes"].items()} == routes
        assert run["tokens_counted_by"] == {"usage": 4}
        assert [(line["input_tokens"], line["output_tokens"]) for line in told.lines] == [row[1:3] for row in rows]
        for line in told.lines:
            async with rig.session.get(f"{rig.url}/prfaas/requests/{line['request_id']}") as reply:
                assert (await reply.json())["route"] == line["route"]
            assert line["arrival_s"] <= line["sent_s"] <= line["first_token_s"] <= line["end_s"]

    behind_gateway(tmp_path, scenario)


def test_a_route_that_was_not_known_when_the_stream_began_is_asked_for(tmp_path: Path) -> None:
    """A gateway that keeps a stream alive sends headers before it knows; the story has the last word."""

    async def scenario(rig: Rig, out: Path) -> None:
        rig.prefillers[0].faults.prefill = "stall"
        process = await begin(rig.url, out, *FEW)
        await until(lambda: len(rig.prefillers[0].legs("prefill")) >= 1, PATIENCE_S)
        await asyncio.sleep(0.5)
        rig.prefillers[0].faults.prefill = "none"
        rig.prefillers[0].release.set()
        told = await end(process, out)
        assert {line["route"] for line in told.lines} == {"remote"}, told.lines
        assert told.run["num_completed"] == 12

    behind_gateway(tmp_path, scenario, gateway={"keep_alive": 0.1})


def test_refusals_are_no_failures(tmp_path: Path) -> None:
    """A gateway that is full answers 429; those that it takes are answered."""

    async def scenario(rig: Rig, out: Path) -> None:
        rig.decoders[0].faults.event_gap_s = 0.3
        run = (told := await bench(rig.url, out, *FEW)).run
        assert (told.status, run["num_failed"]) == (0, 0)
        assert run["num_refused"] > 0
        assert run["num_completed"] + run["num_refused"] == 12
        assert {line["outcome"] for line in told.lines} == {"ok", "unavailable"}
        assert "times: too many requests in flight" in told.err

    behind_gateway(tmp_path, scenario, gateway={"max_inflight_requests": 2})


def test_an_answer_that_breaks_off_is_a_failure(tmp_path: Path) -> None:
    """The gateway says so in the stream; the exit status says that nothing was answered."""

    async def scenario(rig: Rig, out: Path) -> None:
        rig.decoders[0].faults.decode = "cut"
        told = await bench(rig.url, out, *FEW)
        assert told.status == 1
        assert told.run["failures"] == {"error_event": 12}
        assert "12 times: the engine broke off in the middle of its answer" in told.err

    behind_gateway(tmp_path, scenario)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("cut", "disconnected"),
        ("half_event", "disconnected"),
        ("no_done", "cut"),
        ("die", "disconnected"),
        ("error", "http_500"),
        ("refuse", "http_400"),
        ("stall", "timeout"),
    ],
)
def test_each_failure_has_its_kind(tmp_path: Path, fault: str, kind: str) -> None:
    """Whatever an engine does, the run ends and tells it."""

    async def scenario(engine: FakeEngine, out: Path) -> None:
        told = await bench(engine.url, out, "--model", MODEL, *FEW, "--timeout", "1s" if fault == "stall" else "250s")
        assert (told.status, told.run["failures"]) == (1, {kind: 12}), told.err
        assert told.run["ttft_s_mean"] is None

    alone(tmp_path, scenario, decode=fault)


def test_a_server_that_stalls_is_waited_for_from_every_requests_own_time(tmp_path: Path) -> None:
    """No coordinated omission: requests go on coming while nobody is answered, and all of them waited."""

    async def scenario(engine: FakeEngine, out: Path) -> None:
        more = (
            "--input-tokens",
            "9",
            "--output-tokens",
            "2",
            "--rate",
            "25",
            "--num-requests",
            "100",
            "--warm-up",
            "0",
        )
        process = await begin(engine.url, out, "--model", MODEL, *more)
        await until(lambda: len(engine.seen) > 0, PATIENCE_S)
        await asyncio.sleep(2.0)
        engine.faults.decode = "none"
        engine.release.set()
        told = await end(process, out)
        again_s = min(line["first_token_s"] for line in told.lines)
        early = [line for line in told.lines if line["sent_s"] < again_s]
        assert again_s > 1.5
        # 25 a second for 2 s are 50; a client that waits for its answers would have sent one.
        assert len(early) > 15
        assert all(line["first_token_s"] - line["arrival_s"] >= again_s - line["arrival_s"] for line in early)
        ttft_s = sorted(line["first_token_s"] - line["arrival_s"] for line in told.lines)
        assert told.run["ttft_s_p99"] == pytest.approx(ttft_s[98])
        assert told.run["ttft_s_p99"] > 1.4

    alone(tmp_path, scenario, decode="stall")


def test_a_client_that_stands_still_is_told_and_counts(tmp_path: Path) -> None:
    """Requests that this machine sent late waited for it too: their times count from when they should have been
    sent."""

    async def scenario(engine: FakeEngine, out: Path) -> None:
        more = ("--input-tokens", "9", "--output-tokens", "2", "--rate", "25", "--num-requests", "75", "--warm-up", "0")
        process = await begin(engine.url, out, "--model", MODEL, *more)
        await until(lambda: len(engine.seen) > 3, PATIENCE_S)
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.5)
        process.send_signal(signal.SIGCONT)
        told = await end(process, out)
        run = told.run
        assert run["num_sent_late"] > 5
        assert run["send_late_s_max"] > 1.0
        assert run["ttft_s_p99"] > 1.0
        assert "ms late" in told.err
        worst = max(told.lines, key=lambda line: line["sent_s"] - line["arrival_s"])
        assert worst["first_token_s"] - worst["sent_s"] < worst["first_token_s"] - worst["arrival_s"] - 1.0

    alone(tmp_path, scenario)


def test_ctrl_c_tells_what_was_measured_so_far(tmp_path: Path) -> None:
    """Status 130; what is under way is given up, and counted neither as answered nor as failed."""

    async def scenario(engine: FakeEngine, out: Path) -> None:
        more = ("--input-tokens", "9", "--output-tokens", "5", "--rate", "20", "--num-requests", "5000")
        process = await begin(engine.url, out, "--model", MODEL, *more, "--warm-up", "0")
        await until(lambda: sum(seen.is_done for seen in engine.seen) > 5, PATIENCE_S)
        engine.faults.decode = "stall"
        num = len(engine.seen)
        await until(lambda: len(engine.seen) > num + 3, PATIENCE_S)
        process.send_signal(signal.SIGINT)
        told = await end(process, out)
        run = told.run
        assert (told.status, run["was_interrupted"]) == (130, True)
        assert run["num_completed"] > 5
        assert run["num_unfinished"] > 0
        assert run["num_failed"] == 0
        assert run["num_completed"] + run["num_unfinished"] == run["num_requests"] == len(told.lines) < 5000

    alone(tmp_path, scenario)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_conversations_send_their_answers_back(tmp_path: Path, endpoint: str) -> None:
    """Each prompt begins with the one before; a chat's answers are the server's own words."""

    async def scenario(rig: Rig, out: Path) -> None:
        told = await bench(
            rig.url, out, "--input-tokens", "12", "--output-tokens", "3", "--endpoint", endpoint, "--num-requests", "6",
            "--arrivals", "clients 1 think 5ms turns 3 shared 16", "--warm-up", "0",
        )  # fmt: skip
        assert told.status == 0, told.err
        assert [line["turn"] for line in told.lines] == [1, 2, 3, 1, 2, 3]
        assert [line["conversation"] for line in told.lines] == 3 * ["0-1"] + 3 * ["0-2"]
        assert [line["input_tokens"] for line in told.lines[:3]] == [28, 43, 58]
        bodies = [seen.body for seen in rig.decoders[0].seen][-6:]
        if endpoint == "completions":
            prompts = [body["prompt"] for body in bodies]
            assert [len(prompt) for prompt in prompts[:3]] == [28, 43, 58]
            assert prompts[1][:28] == prompts[0]
            assert prompts[2][:43] == prompts[1]
            assert prompts[3][:16] == prompts[0][:16] != prompts[3][12:28]
            assert "gives no ids of its answers' tokens" in told.err
        else:
            first, second = bodies[0]["messages"], bodies[1]["messages"]
            assert second[:1] == first
            assert (second[1]["role"], second[1]["content"][-3:]) == ("assistant", "-2 ")
            assert [message["role"] for message in bodies[2]["messages"]] == ["user", "assistant"] * 2 + ["user"]

    behind_gateway(tmp_path, scenario)
    assert answer_text("x", 3).endswith("-2 ")


def test_a_deployments_workload_with_limits_and_a_picture(tmp_path: Path) -> None:
    """Lengths, rate and TPOT limit come from the file; a table without --json."""
    file = tmp_path / "d.yaml"
    file.write_text(
        "model: {name: tiny}\nclusters: {pd: {role: pd, instances: 1}}\npolicy: {kind: homogeneous}\nslo: {tpot: 10s}\n"
        "workload: {input_tokens: {constant: 30}, output_tokens: 4.4, arrivals: {poisson: {rate: 60}}}\n"
    )

    async def scenario(rig: Rig, out: Path) -> None:
        picture = tmp_path / "p.svg"
        more = ("--deployment", str(file), "--duration", "1s", "--slo-ttft", "100s", "--plot", str(picture))
        told = await bench(rig.url, out, *more)
        run = told.run
        assert told.status == 0, told.err
        assert {(line["input_tokens"], line["max_tokens"]) for line in told.lines} == {(30, 4)}
        assert run["slo_fraction"] == 1.0
        assert run["num_warm_up"] == len(told.lines) // 10
        assert "remote" in picture.read_text()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "prfaas", "bench", "e2e", rig.url, *FEW, stdout=asyncio.subprocess.PIPE
        )
        table = (await process.communicate())[0].decode()
        assert "12 of 12 answered" in table
        assert "sent late: most, s" in table

    behind_gateway(tmp_path, scenario)


def test_too_few_files_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    """As many connections as there may be requests in flight, or status 2."""

    async def scenario(engine: FakeEngine, out: Path) -> None:
        def few() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

        more = ("--model", MODEL, "--input-tokens", "9", "--rate", "1000", "--num-requests", "500")
        told = await bench(engine.url, out, *more, preexec_fn=few)
        assert (told.status, told.out, engine.seen) == (2, "", [])
        assert "up to 500 requests may be under way at once" in told.err
        assert "128 open files" in told.err
        assert told.lines == []

    alone(tmp_path, scenario)


def test_a_server_that_cannot_be_measured_is_told_at_once(tmp_path: Path) -> None:
    """Nobody there, or another model: status 1 and one sentence; nothing is written."""

    async def scenario(rig: Rig, out: Path) -> None:
        told = await bench("http://127.0.0.1:1", out, "--model", MODEL, *FEW)
        assert (told.status, told.out, told.lines) == (1, "", [])
        assert "cannot be reached" in told.err
        told = await bench(rig.url, out, "--model", "large", *FEW)
        assert (told.status, "there is no model 'large'; the server has tiny" in told.err) == (1, True)
        told = await bench(rig.url, out, "--input-tokens", "9")
        assert (told.status, "add --rate" in told.err) == (2, True)

    behind_gateway(tmp_path, scenario)
