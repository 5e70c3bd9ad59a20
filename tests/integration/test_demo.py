"""`prfaas demo --engine vllm` as a newcomer runs it, and as an impatient one ends it."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.demos import Demo, cmdline, marked, until

if importlib.util.find_spec("vllm") is None or importlib.util.find_spec("openai") is None:
    pytest.skip("vLLM is not installed; `make setup` installs it", allow_module_level=True)

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder, so that the model is made once."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture
def demo(folder: Path) -> Iterator[Demo]:
    running = Demo(folder, "--engine", "vllm")
    yield running
    running.popen.kill()
    running.popen.wait()
    until(lambda: not running.processes(), 30)


def test_it_shows_and_proves_what_it_claims(demo: Demo) -> None:
    """Status 0, a row for every request, four proofs, what they do not prove, and no process left."""
    assert demo.popen.wait(800) == 0, demo.text()
    text = demo.text()
    assert text.count("│ remote │") == 7
    assert text.count("│ local  │") == 4
    assert text.count("max |Δlogprob| = 0\n") == 4
    assert text.count("as clients send prompts, their last token is rounded by other kernels") == 1
    assert "done in" in text
    assert demo.processes() == []


def test_ctrl_c_while_engines_start(demo: Demo) -> None:
    """Status 130, one sentence, no traceback, and nothing left behind."""
    until(lambda: sum("api_server" in line for line in demo.processes()) == 2, 600)
    # Each engine's log was emptied before it started: what is there now has been said since.
    logs = list((demo.folder / ".demo" / "logs").glob("engine-*.log"))
    until(lambda: any(log.stat().st_size for log in logs), 600)
    assert "gateway is up" not in demo.text()
    demo.popen.send_signal(signal.SIGINT)
    assert demo.popen.wait(60) == 130
    assert "interrupted; every process is stopped" in demo.text()
    assert "Traceback" not in demo.text()
    assert demo.processes() == []


def test_an_engine_that_dies_is_named(demo: Demo) -> None:
    """Status 1, what died and where its log is."""
    until(lambda: any("api_server" in line for line in demo.processes()), 600)
    pids = [
        int(entry.name)
        for entry in Path("/proc").glob("[0-9]*")
        if b"api_server" in cmdline(entry) and marked(entry, demo)
    ]
    os.kill(pids[0], signal.SIGKILL)
    assert demo.popen.wait(60) == 1
    assert "was killed by signal 9; the end of .demo/logs/engine-" in demo.text()
    assert "Traceback (most recent call last)" not in demo.text().split("logs are in")[0]
    assert demo.processes() == []


def test_kill_9_while_everything_runs(demo: Demo) -> None:
    """Not even vLLM's engine cores, which are grandchildren, outlive it."""
    until(lambda: "gateway is up" in demo.text(), 600)
    assert sum("EngineCore" in line or "api_server" in line for line in demo.processes()) >= 2
    demo.popen.kill()
    demo.popen.wait()
    until(lambda: not demo.processes(), 60)
