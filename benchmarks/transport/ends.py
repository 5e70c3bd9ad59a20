"""Processes at the ends of the link, asked in JSON lines, and the base of movers made of two of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.transport.movers import process_cpu_s
from benchmarks.transport.wan import Net
from prfaas.bench.nodes import Moved

ROOT = Path(__file__).parents[2]
STDERR_TAIL = 2000


class End:
    """A `python -m MODULE` that answers lines (see `answers.serve`). It ends when its stdin does."""

    def __init__(self, prefix: tuple[str, ...], python: str, module: str, env: Mapping[str, str]) -> None:
        self._module = module
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        self._process = subprocess.Popen(
            [*prefix, python, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            process_group=0,  # Ctrl-C reaches it through us
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        )

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Do one thing and return its answer. Raises with the end of its stderr when it ended or failed."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise RuntimeError(f"{self._module}, asked to {do}: {answer['error']}\n{self._said()}")
        return answer

    def cpu_s(self) -> float:
        """User and system time so far."""
        return process_cpu_s(self._process.pid)

    def pause(self) -> None:
        """Take it off the processor until `resume`: between moves some libraries' threads spin, and cores are few."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, by force after five seconds."""
        assert self._process.stdin
        assert self._process.stdout
        self.resume()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def _said(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-STDERR_TAIL:]


class EndsMover:
    """A mover whose ends are two processes of the same module, run by a Python that has the library.

    Both answer `open`, `stamped`, `checksum`; A also `connect` (given B's answer to `open`), `fill`, `stamp`, `move`.
    """

    def __init__(self, name: str, python: str, module: str, imports: str, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._python = python
        self._module = module
        self._imports = imports
        self._env = dict(env or {})
        self._a: End | None = None
        self._b: End | None = None
        self._num_moves = 0

    def available(self) -> str | None:
        """Whether that Python runs and imports the library."""
        try:
            done = subprocess.run(
                [self._python, "-P", "-c", f"import {self._imports}"],
                check=False, capture_output=True, text=True, cwd=ROOT, timeout=60,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        lines = done.stderr.strip().splitlines()
        return None if done.returncode == 0 else f"{self._python}: {lines[-1] if lines else 'import fails'}"

    def env_for(self, net: Net) -> dict[str, str]:
        """Environment of the ends; overridden by those that must be told the device."""
        return self._env

    def start(self, net: Net, num_bytes: int, num_pieces: int) -> None:
        """Both ends up, connected, with A's bytes random."""
        env = self.env_for(net)
        self._num_moves = 0
        self._a = End(net.a_prefix, self._python, self._module, env)
        self._b = End(net.b_prefix, self._python, self._module, env)
        size = {"num_bytes": num_bytes, "num_pieces": num_pieces}
        self._a.ask("open", address=net.a_address, sends=True, **size)
        target = self._b.ask("open", address=net.b_address, sends=False, **size)
        self._a.ask("connect", target=target)
        self._a.ask("fill", seed=1)
        self._a.pause()
        self._b.pause()

    def move(self) -> Moved:
        """Stamps A's pieces, moves them (this is what is timed, in A), and sees that B has the stamps.

        Both ends are paused between moves, connections kept, so that other movers can be measured meanwhile.
        """
        assert self._a, "start() comes first"
        assert self._b
        self._num_moves += 1
        self._b.resume()
        self._a.resume()
        self._a.ask("stamp", number=self._num_moves)
        before_s = self._a.cpu_s() + self._b.cpu_s()
        answer = self._a.ask("move")
        cpu_s = self._a.cpu_s() + self._b.cpu_s() - before_s
        if not self._b.ask("stamped", number=self._num_moves)["all"]:
            raise RuntimeError(f"{self.name}: a move was reported done before its bytes were at B")
        self._a.pause()
        self._b.pause()
        return Moved(answer["num_bytes"], answer["seconds"], cpu_s)

    def stop(self) -> None:
        """Compare both ends' checksums, then end them."""
        ends = [end for end in (self._a, self._b) if end]
        self._a = self._b = None
        for end in ends:
            end.resume()
        try:
            if len(ends) == 2 and self._num_moves and len({end.ask("checksum")["crc32"] for end in ends}) > 1:
                raise RuntimeError(f"{self.name}: B holds other bytes than A sent")
        finally:
            for end in ends:
                end.stop()
