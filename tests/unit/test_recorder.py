"""`prfaas record` where no gateway is: what it says, and its status."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from prfaas.recorder.command import RecordOptions, run

PAGE = "<!DOCTYPE HTML>\n<html>\n" + "<p>not here</p>\n" * 100


@contextmanager
def server(status: int, body: str) -> Iterator[str]:
    """Answers everything so; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_address[1]}"
        finally:
            serving.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (404, PAGE, "HTTP 404: no PrfaaS gateway is there, or its file has no gateway.record: true"),
        (502, PAGE, "HTTP 502"),
        (503, "busy\n" * 100, "HTTP 503: " + ("busy " * 100)[:120] + "…"),
        (404, '{"error": {"message": "in my words"}}', "in my words"),
        (200, "[]", "that is no PrfaaS gateway's answer"),
    ],
)
def test_anybody_elses_answer_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, body: str, told: str
) -> None:
    """And nothing is written: status 1, since the command line may be right."""
    with server(status, body) as url:
        assert run(RecordOptions(url, tmp_path / "out.jsonl")) == 1
        assert capsys.readouterr().err == f"{url}/prfaas/trace: {told}\n"
    assert list(tmp_path.iterdir()) == []


def test_nobody_there_is_a_failure_and_a_bad_url_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """1 and 2, as docs/cli.md says."""
    assert run(RecordOptions("http://127.0.0.1:9", tmp_path / "out.jsonl")) == 1
    assert "no gateway answers there" in capsys.readouterr().err
    assert run(RecordOptions("ftp://127.0.0.1:9", tmp_path / "out.jsonl")) == 2
    assert "not a URL" in capsys.readouterr().err
