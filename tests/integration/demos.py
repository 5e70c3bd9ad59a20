"""A demo that runs, and what is left of it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Demo:
    """A running demo. Every process that comes of it carries a mark in its environment."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.mark = f"PRFAAS_TEST_MARK={secrets.token_hex(8)}"
        name, value = self.mark.split("=")
        self.log = folder / "demo.log"
        with self.log.open("wb") as stream:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "prfaas", "demo", *arguments], cwd=folder, stdout=stream, stderr=subprocess.STDOUT,
                env={**os.environ, name: value}, start_new_session=True,
            )  # fmt: skip

    def processes(self) -> list[str]:
        """Command lines of everything that still runs."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120])
            except OSError:
                continue
        return found

    def kill(self, word: str) -> None:
        """kill -9 to every process of it whose command line has this word."""
        for entry in Path("/proc").glob("[0-9]*"):
            if word.encode() in cmdline(entry).split(b"\0") and marked(entry, self):
                os.kill(int(entry.name), signal.SIGKILL)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


def until(condition: Callable[[], object], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def cmdline(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def marked(entry: Path, demo: Demo) -> bool:
    return demo.mark.encode() in (entry / "environ").read_bytes()
