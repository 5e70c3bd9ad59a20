"""`prfaas demo` with emulated engines, as a newcomer runs it, and as an impatient one ends it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.demos import Demo, until

pytestmark = pytest.mark.slow


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    running = Demo(tmp_path)
    yield running
    running.popen.kill()
    running.popen.wait()
    until(lambda: not running.processes(), 30)


def test_every_request_is_answered_while_the_link_is_cut(demo: Demo) -> None:
    """Status 0: it fails itself if a request failed or a byte was wrong. Both events are told, and nothing is left."""
    assert demo.popen.wait(800) == 0, demo.text()
    text = demo.text()
    assert "the link is cut" in text
    assert "the link is back" in text
    assert "│ remote " in text
    assert "no request failed, and no byte of KVCache was wrong" in text
    assert demo.processes() == []


def test_ctrl_c_under_load(demo: Demo) -> None:
    """Status 130, one sentence, no traceback, and nothing left behind."""
    until(lambda: "the link is cut after" in demo.text(), 600)
    demo.popen.send_signal(signal.SIGINT)
    assert demo.popen.wait(60) == 130
    assert "interrupted; every process is stopped" in demo.text()
    assert "Traceback" not in demo.text()
    assert demo.processes() == []


def test_an_engine_process_that_dies_is_named(demo: Demo) -> None:
    """Status 1: without decode engines requests fail, and what died explains it."""
    until(lambda: "the link is cut after" in demo.text(), 600)
    demo.kill("emulate")
    assert demo.popen.wait(300) == 1
    assert "was killed by signal 9" in demo.text()
    assert demo.processes() == []
