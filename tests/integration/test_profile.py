"""`prfaas profile` as a process against servers that take programmed times, refuse things, and break."""

from __future__ import annotations

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

STEP_S = 0.002


def prefill_s(num_tokens: int) -> float:
    """Programmed prefill time: a lower bound of what may be measured."""
    return 0.004 + 20e-6 * num_tokens


@dataclass
class Server:
    """An OpenAI-compatible server. `faults` are switched on by name."""

    url: str = ""
    faults: set[str] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def lengths(self) -> list[int]:
        """Lengths of the prompts that came as token ids with one token of output."""
        return [len(body["prompt"]) for body in self.bodies if body["max_tokens"] == 1]


def handler_for(state: Server) -> type[BaseHTTPRequestHandler]:
    """Answers one connection as `state` says."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

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
            models = ["m", "n"] if "two models" in state.faults else ["m"]
            limit = {} if "no limit" in state.faults else {"max_model_len": 2049}
            self.answer(200, {"data": [{"id": name, **limit} for name in models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_text = isinstance(body["prompt"], str)
            if "text only" in state.faults and not is_text:
                self.answer(400, {"error": {"message": "prompt must be text"}})
                return
            if "strict" in state.faults and "ignore_eos" in body:
                self.answer(422, {"error": {"message": "unknown field ignore_eos"}})
                return
            if "once" in state.faults:
                state.faults.discard("once")
                self.answer(503, {"error": {"message": "busy"}})
                return
            state.bodies.append(body)
            self.stream(body, len(body["prompt"].split()) if is_text else len(body["prompt"]))

        def stream(self, body: dict[str, Any], num_tokens: int) -> None:
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            time.sleep(prefill_s(num_tokens))
            for number in range(body["max_tokens"]):
                if number:
                    time.sleep(STEP_S)
                self.event({"choices": [{"text": "x"}]})
            if "cut" in state.faults:
                return
            cached = {"prompt_tokens_details": {"cached_tokens": 100}} if "cached" in state.faults else {}
            usage = {"prompt_tokens": num_tokens, "completion_tokens": body["max_tokens"], **cached}
            self.event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")

        def event(self, what: object) -> None:
            self.wfile.write(b"data: " + json.dumps(what).encode() + b"\n\n")
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
    assert all(step.step_s >= STEP_S for step in profile.decode)
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


def test_a_server_that_takes_text_only(server: Server, tmp_path: Path) -> None:
    """Gets text; the file says so."""
    server.faults = {"text only"}
    out = tmp_path / "hw.yaml"
    assert measure(server.url, out).returncode == 0
    assert "text, lengths by the server's count" in out.read_text()


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
        ("no limit", 2, "give --max-tokens"),
        ("cut", 1, "the stream broke before its end"),
        ("cached", 1, "turn prefix caching off"),
    ],
)
def test_what_spoils_a_measurement_is_told(
    server: Server, tmp_path: Path, fault: str, status: int, message: str
) -> None:
    """One sentence, and nothing is written."""
    server.faults = {fault}
    done = measure(server.url, tmp_path / "hw.yaml")
    assert done.returncode == status
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "more", "status", "message"),
    [
        ("127.0.0.1:1", [], 2, "is not a URL"),
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
    process = subprocess.Popen(
        argv(server.url, tmp_path / "hw.yaml", "--repeats", "50"), stderr=subprocess.PIPE, text=True
    )
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
