"""`prfaas profile` as a process against servers that take programmed times, refuse things, and break."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prfaas.deployment.document import read_document, validated
from prfaas.profiles.format import HardwareProfile
from prfaas.testing.node_pair import wait_until

STEP_S = 0.005

#: What the model takes; one less is the longest prompt.
MAX_MODEL_TOKENS = 2049


def prefill_s(num_tokens: int) -> float:
    """Programmed prefill time: a lower bound of what may be measured."""
    return 0.004 + 20e-6 * num_tokens


@dataclass
class Server:
    """An OpenAI-compatible server that keeps its connections. `faults` are switched on by name; `stall` answers once
    `release` is set."""

    url: str = ""
    faults: set[str] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    busy: threading.Lock = field(default_factory=threading.Lock)

    def lengths(self) -> list[int]:
        """Lengths of the prompts that came as token ids with one token of output."""
        return [len(body["prompt"]) for body in self.bodies if body["max_tokens"] == 1]

    def models(self) -> list[dict[str, Any]]:
        """What /v1/models lists."""
        names = {"two models": ["m", "n"], "no model": []}.get(next(iter(self.faults), ""), ["m"])
        limit = {} if "no limit" in self.faults else {"max_model_len": MAX_MODEL_TOKENS}
        return [{"id": name, **limit} for name in names]

    def usage(self, num_tokens: int, body: dict[str, Any]) -> dict[str, Any] | None:
        """What the last event counts."""
        if "uncounted" in self.faults:
            return None
        cached = {"prompt_tokens_details": {"cached_tokens": 100}} if "cached" in self.faults else {}
        return {"prompt_tokens": num_tokens, "completion_tokens": body["max_tokens"], **cached}

    def refusal(self, body: dict[str, Any]) -> tuple[int, str] | None:
        """Status and message of what `faults` refuse."""
        if "text only" in self.faults and not isinstance(body["prompt"], str):
            return 400, "prompt must be text"
        if "strict" in self.faults and "ignore_eos" in body:
            return 422, "unknown field ignore_eos"
        if "once" in self.faults:
            self.faults.discard("once")
            return 503, "busy"
        if "broken" in self.faults:
            return 500, "out of memory"
        if "short" in self.faults and len(body["prompt"]) > 1000:
            return 400, "maximum context length is 1000 tokens"
        return None


def handler_for(state: Server) -> type[BaseHTTPRequestHandler]:
    """Answers one connection as `state` says."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            state.connections.append(self.client_address[1])

        def log_message(self, *args: object) -> None:
            pass

        def answer(self, status: int, body: object) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def do_GET(self) -> None:
            state.keys.append(self.headers.get("Authorization"))
            if "locked" in state.faults:
                self.answer(401, {"error": {"message": "no"}})
                return
            if "absent" in state.faults:
                self.answer(404, {"detail": "Not Found"})
                return
            self.answer(200, {"data": state.models()})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            refusal = state.refusal(body)
            if refusal is not None:
                self.answer(refusal[0], {"error": {"message": refusal[1]}})
                return
            state.bodies.append(body)
            if "stall" in state.faults:
                state.release.wait()
            # Text: two tokens a word, and one that stands before all.
            num_tokens = 1 + 2 * len(body["prompt"].split()) if isinstance(body["prompt"], str) else len(body["prompt"])
            state.counts.append(num_tokens)
            with state.busy if "queue" in state.faults else contextlib.nullcontext():
                self.stream(body, num_tokens)

        def stream(self, body: dict[str, Any], num_tokens: int) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            time.sleep(prefill_s(num_tokens))
            for number in range(0 if "mute" in state.faults else body["max_tokens"]):
                if number:
                    time.sleep(STEP_S)
                self.event({"choices": [{"text": "x"}]})
                if "cut" in state.faults or ("cut later" in state.faults and number == 3):
                    self.close_connection = True
                    return
            self.event({"choices": [], "usage": state.usage(num_tokens, body)})
            self.chunk(b"data: [DONE]\n\n")
            self.chunk(b"")  # the body's end comes by itself, as servers send it

        def event(self, what: object) -> None:
            self.chunk(b"data: " + json.dumps(what).encode() + b"\n\n")

        def chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server."""
    state = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_for(state)) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        state.url = f"http://127.0.0.1:{http.server_port}"
        yield state
        state.release.set()
        http.shutdown()
        thread.join()


QUICK = ["--num-lengths", "3", "--repeats", "2", "--decode-batches", "1,3", "--decode-tokens", "12"]


def argv(url: str, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "prfaas", "profile", url, "--out", str(out), *QUICK, *more]


def measure(url: str, out: Path, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        argv(url, out, *more), capture_output=True, text=True, check=False, timeout=120, env=env or None
    )


def test_measures_what_was_programmed(server: Server, tmp_path: Path) -> None:
    """Lengths exact, warm-ups not counted, times no shorter than they are, a file that the planner reads."""
    out = tmp_path / "hw.yaml"
    done = measure(server.url, out, "--accelerator", "a100", "--min-tokens", "100", "--max-tokens", "1600")
    assert done.returncode == 0, done.stderr
    profile = validated(read_document(out), HardwareProfile)
    assert [row.tokens for row in profile.prefill.table] == [100, 400, 1600]
    assert all(row.seconds >= prefill_s(int(row.tokens)) for row in profile.prefill.table)
    assert [step.batch for step in profile.decode] == [1, 3]
    # Single tokens may arrive late and the next in time: only a sum of gaps is bounded. Steps of pure times are tested
    # exactly in tests/unit/profiling.
    assert all(step.step_s > STEP_S / 2 for step in profile.decode)
    assert (profile.model, profile.accelerator) == ("m", "a100")
    # One to find the prompt's form, then a warm-up and two repeats of each.
    assert sorted(server.lengths()) == [100] * 4 + [400] * 3 + [1600] * 3
    prompts = [tuple(body["prompt"][:16]) for body in server.bodies]
    assert len(set(prompts)) == len(prompts)
    assert "wrote" in done.stderr
    assert done.stdout == ""


def test_the_longest_prompt_is_what_the_model_takes(server: Server, tmp_path: Path) -> None:
    """One token is left for the output."""
    assert measure(server.url, tmp_path / "hw.yaml").returncode == 0
    assert max(server.lengths()) == 2048


def test_a_second_run_sends_other_prompts(server: Server, tmp_path: Path) -> None:
    """In the same order: the server's prefix cache still has the first run's."""
    for _ in range(2):
        assert measure(server.url, tmp_path / "hw.yaml", "--overwrite").returncode == 0
    lengths = server.lengths()
    assert lengths[: len(lengths) // 2] == lengths[len(lengths) // 2 :]
    assert len({tuple(body["prompt"][:16]) for body in server.bodies}) == len(server.bodies)


def test_connections_are_kept(server: Server, tmp_path: Path) -> None:
    """One for everything that is sent alone, as many as the largest batch has sequences: none is opened while a sample's
    clock runs, but in warm-ups."""
    assert measure(server.url, tmp_path / "hw.yaml").returncode == 0
    assert len(server.connections) == 3


def test_a_server_that_takes_text_only(server: Server, tmp_path: Path) -> None:
    """Gets text and still `ignore_eos`; the lengths in the file are those that it counted, none above its maximum."""
    server.faults = {"text only"}
    out = tmp_path / "hw.yaml"
    assert measure(server.url, out).returncode == 0
    profile = validated(read_document(out), HardwareProfile)
    assert {int(row.tokens) for row in profile.prefill.table} <= set(server.counts)
    assert all(row.seconds >= prefill_s(int(row.tokens)) for row in profile.prefill.table)
    assert 1900 < profile.prefill.table[-1].tokens < MAX_MODEL_TOKENS
    assert all(body["ignore_eos"] for body in server.bodies)
    assert "text, lengths by the server's count" in profile.source


def test_a_server_that_knows_openai_only(server: Server, tmp_path: Path) -> None:
    """`ignore_eos` is left out when it is refused."""
    server.faults = {"strict"}
    assert measure(server.url, tmp_path / "hw.yaml").returncode == 0
    assert not any("ignore_eos" in body for body in server.bodies)


def test_a_passing_failure_is_repeated_and_counted(server: Server, tmp_path: Path) -> None:
    """In the file's source."""
    server.faults = {"once"}
    out = tmp_path / "hw.yaml"
    assert measure(server.url, out).returncode == 0
    assert "1 samples repeated" in out.read_text()


def test_the_key_is_sent(server: Server, tmp_path: Path) -> None:
    """From the environment."""
    assert measure(server.url, tmp_path / "hw.yaml", OPENAI_API_KEY="secret").returncode == 0
    assert set(server.keys) == {"Bearer secret"}
    assert "secret" not in (tmp_path / "hw.yaml").read_text()


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("locked", 1, "set OPENAI_API_KEY"),
        ("two models", 1, "choose one with --model: m, n"),
        ("no model", 1, "lists no model"),
        ("absent", 1, "give the base URL of an OpenAI-compatible server"),
        ("no limit", 2, "give --max-tokens"),
        ("broken", 1, "the server answered 500 (out of memory)"),
        ("short", 1, "maximum context length is 1000 tokens; is a prompt of 2048 tokens too long? Lower --max-tokens"),
        ("mute", 1, "without a single token"),
        ("cut", 1, "failed"),
        ("cut later", 1, "failed"),
        ("cached", 1, "turn prefix caching off"),
        ("queue", 1, "if the server queues that many"),
    ],
)
def test_what_spoils_a_measurement_is_told(
    server: Server, tmp_path: Path, fault: str, status: int, message: str
) -> None:
    """One sentence, and nothing is written."""
    server.faults = {fault}
    done = measure(server.url, tmp_path / "hw.yaml")
    assert done.returncode == status
    last = done.stderr.splitlines()[-1]
    assert message in last
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_text_that_nobody_counts_is_refused(server: Server, tmp_path: Path) -> None:
    """Its length would be a guess."""
    server.faults = {"text only", "uncounted"}
    done = measure(server.url, tmp_path / "hw.yaml")
    assert (done.returncode, "usage.prompt_tokens" in done.stderr) == (1, True), done.stderr


def test_a_server_that_does_not_answer_is_given_up(server: Server, tmp_path: Path) -> None:
    """Once, not three times: the option that helps is named."""
    server.faults = {"stall"}
    done = measure(server.url, tmp_path / "hw.yaml", "--timeout", "0.5")
    assert (done.returncode, len(server.bodies)) == (1, 1)
    assert "no whole answer within 0.5 s; raise --timeout" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "more", "status", "message"),
    [
        ("127.0.0.1:1", [], 2, "is not a URL"),
        ("http://[", [], 2, "is not a URL"),
        ("http://127.0.0.1:1", [], 1, "cannot be reached"),
        (
            "http://127.0.0.1:1",
            ["--min-tokens", "9", "--max-tokens", "8"],
            2,
            "--min-tokens 9 is more than --max-tokens 8",
        ),
        ("http://127.0.0.1:1", ["--decode-batches", "1,x"], 2, "--decode-batches"),
        ("http://127.0.0.1:1", ["--repeats", "0"], 2, "--repeats"),
    ],
)
def test_bad_requests(tmp_path: Path, url: str, more: list[str], status: int, message: str) -> None:
    """Before anything is measured."""
    done = measure(url, tmp_path / "hw.yaml", *more)
    assert (done.returncode, message in done.stderr) == (status, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_replaced_unasked(server: Server, tmp_path: Path) -> None:
    """Unless --overwrite is given."""
    out = tmp_path / "hw.yaml"
    out.write_text("precious")
    assert measure(server.url, out).returncode == 2
    assert out.read_text() == "precious"
    assert measure(server.url, out, "--overwrite").returncode == 0
    assert out.read_text() != "precious"


def test_ctrl_c_leaves_nothing(server: Server, tmp_path: Path) -> None:
    """Status 130, in the middle of a measurement."""
    # A shell that runs this in the background has Ctrl-C ignored, and processes inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        argv(server.url, tmp_path / "hw.yaml", "--repeats", "50"), stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    try:
        wait_until(lambda: len(server.bodies) > 5)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "interrupted; nothing was written" in told
    assert list(tmp_path.iterdir()) == []
