"""Starts processes, watches their health, and ends every one of them, whatever happens.

Laws of this file:
- A child that dies is reported, never restarted in silence: whether it is started again is its owner's business.
- What serves clients is told to stop before what it needs: a gateway whose engines end with it cuts every stream.
- Children run in groups of their own and are ended by group: vLLM has children too.
- Nothing outlives the supervisor: an ordinary end stops the groups in order; a second Ctrl-C kills them at once; if the
  supervisor itself is killed, the kernel kills its children (PR_SET_PDEATHSIG) and the guard kills their groups.
- PR_SET_PDEATHSIG means the *thread* that started a child: start from one that lives as long as the supervisor.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from prfaas.core.errors import PrfaasError
from prfaas.launch.own_files import make_own_folder, open_own_file
from prfaas.launch.plan import ProcessSpec

_PR_SET_PDEATHSIG = 1
# Loaded here because a child between fork and exec must not import or load anything.
_LIBC = ctypes.CDLL(None, use_errno=True)

#: How long groups may take to end after each signal. A vLLM with requests in flight needs a few seconds.
GRACE_S = 8.0
POLL_S = 0.2
#: A gateway without requests has ended by then.
TELL_AFTER_S = 1.5
#: After its time a gateway tells those whom it cuts off (3 s), gives landings back (5 and 2 s), and sends its last
#: spans (3 s).
LAST_WORDS_S = 15.0
LAST_LINES = 15


class ProcessDied(PrfaasError):
    """A supervised process ended on its own; the text has its exit status and the end of its log."""


class NotHealthy(PrfaasError):
    """Something did not become healthy in time."""


@dataclass(eq=False)
class Running:
    """One started process and the group that it leads.

    `ended_told` keeps its end from being reported twice; `gone` is set once nothing of its group is left, because from
    then on its number may belong to somebody else.
    """

    spec: ProcessSpec
    popen: subprocess.Popen[bytes]
    log: Path
    healthy: bool = False
    was_healthy: bool = False
    ended_told: bool = False
    gone: bool = False

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def last_lines(self) -> str:
        """The end of its log, for error messages."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            return "\n".join(f"    {line}" for line in lines[-LAST_LINES:])
        return "    (no log)"


class Supervisor:
    """Owns a set of processes for as long as its `with` block runs. Standard output and error of each go to
    `logs/NAME.log`."""

    def __init__(
        self, logs: Path, *, grace_s: float = GRACE_S, tell: Callable[[str], None] = lambda sentence: None
    ) -> None:
        self.logs = logs
        self._tell = tell
        self._grace_s = grace_s
        self.processes: dict[str, Running] = {}
        #: Processes that ended on their own, as far as `newly_ended` has told.
        self.num_deaths = 0
        self._guard: subprocess.Popen[str] | None = None

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self, specs: list[ProcessSpec], *, keeps_logs: bool = False) -> None:
        """Start processes in order, without waiting for their health. What an ended process of the same name left in
        its group is killed first; its log goes on with `keeps_logs`. Raises OSError if one cannot be started."""
        make_own_folder(self.logs)
        if self._guard is None:
            argv = [sys.executable, "-m", "prfaas.launch.guard"]
            self._guard = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, bufsize=1, start_new_session=True
            )
        for spec in specs:
            self._clear_name(spec.name)
            log = self.logs / f"{spec.name}.log"
            with open_own_file(log, keeps=keeps_logs) as stream:
                popen = subprocess.Popen(
                    spec.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **spec.env},
                    # Not a session: Linux schedules each session apart (autogroup), and vLLM's processes, which yield
                    # the core to each other all the time, then keep those of other sessions off it for minutes.
                    process_group=0,
                    preexec_fn=_die_with_parent,
                )
            self.processes[spec.name] = Running(spec, popen, log)
            self._tell_guard(f"+{popen.pid}\n")

    def wait_healthy(
        self, timeout_s: float, names: list[str] | None = None, on_tick: Callable[[Supervisor], None] | None = None
    ) -> None:
        """Wait until all (or `names`) are healthy. Raises ProcessDied or NotHealthy; `on_tick` may show progress."""
        deadline = time.monotonic() + timeout_s
        wanted = [self.processes[name] for name in names or self.processes]
        while True:
            ended = self.newly_ended()
            if ended:
                raise ProcessDied("\n".join(map(describe_end, ended)))
            self.probe(wanted)
            if on_tick is not None:
                on_tick(self)
            if all(running.healthy for running in wanted):
                return
            if time.monotonic() > deadline:
                late = next(running for running in wanted if not running.healthy)
                text = f"{late.spec.name} is not healthy after {timeout_s:g} s; the end of {late.log}:"
                raise NotHealthy(f"{text}\n{late.last_lines()}")
            time.sleep(POLL_S)

    def probe(self, wanted: list[Running] | None = None) -> None:
        """Ask every process for its health once."""
        for running in wanted or list(self.processes.values()):
            running.healthy = running.is_alive and is_healthy(running.spec)
            running.was_healthy = running.was_healthy or running.healthy

    def newly_ended(self) -> list[Running]:
        """Processes that ended since the last call."""
        ended = [running for running in self.processes.values() if not running.is_alive and not running.ended_told]
        for running in ended:
            running.ended_told = True
            running.healthy = False
            self.num_deaths += 1
        return ended

    def stop(self) -> None:
        """End every group: SIGTERM to those that stop first, and time to finish; then SIGINT, SIGTERM and SIGKILL to
        all. A Ctrl-C meanwhile goes straight to SIGKILL. Safe to call again."""
        try:
            self._stop_first()
            if self._signal_all(signal.SIGINT):
                self._signal_all(signal.SIGTERM)
        except KeyboardInterrupt:
            pass
        finally:
            self._signal_all(signal.SIGKILL)
            self.processes.clear()
            self._dismiss_guard()

    def _clear_name(self, name: str) -> None:
        before = self.processes.get(name)
        if before is None:
            return
        assert not before.is_alive, f"{name} is running already"
        if self._group_alive(before):
            os.killpg(before.pid, signal.SIGKILL)

    def _stop_first(self) -> None:
        first = [each for each in self.processes.values() if each.spec.stops_first_s and each.is_alive]
        for running in first:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                running.popen.terminate()
        began_s = time.monotonic()
        has_told = False
        while first := [each for each in first if each.is_alive]:
            waited_s = time.monotonic() - began_s
            longest_s = max(each.spec.stops_first_s for each in first)
            if waited_s > longest_s + LAST_WORDS_S:
                return
            if waited_s > TELL_AFTER_S and not has_told:
                has_told = True
                names = ", ".join(each.spec.name for each in first)
                with contextlib.suppress(OSError):  # the terminal may be what has gone
                    self._tell(f"{names}: what goes on gets up to {longest_s:g} s (Ctrl-C stops everything at once)")
            time.sleep(0.05)

    def _signal_all(self, number: signal.Signals) -> bool:
        """Send a signal to every group and give them the grace; True if one is left."""
        for running in self.processes.values():
            if self._group_alive(running):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(running.pid, number)
        deadline = time.monotonic() + self._grace_s
        while any(self._group_alive(running) for running in self.processes.values()):
            if time.monotonic() > deadline:
                return True
            time.sleep(0.05)
        return False

    def _group_alive(self, running: Running) -> bool:
        if running.gone:
            return False
        running.popen.poll()  # a leader that was not reaped keeps its group
        try:
            os.killpg(running.pid, 0)
        except (ProcessLookupError, PermissionError):
            running.gone = True
            self._tell_guard(f"-{running.pid}\n")
            return False
        return True

    def _tell_guard(self, line: str) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._guard.stdin.write(line)

    def _dismiss_guard(self) -> None:
        if self._guard is None or self._guard.stdin is None:
            return
        with contextlib.suppress(OSError):
            self._guard.stdin.close()
        self._guard.wait()
        self._guard = None


def describe_end(running: Running) -> str:
    """What a person needs when a process ended on its own."""
    code = running.popen.returncode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
    return f"{running.spec.name} {how}; the end of {running.log}:\n{running.last_lines()}"


def is_healthy(spec: ProcessSpec, timeout_s: float = 2.0) -> bool:
    """Does the process answer 200? A node that waits for its engine is healthy when the engine has registered."""
    try:
        with urllib.request.urlopen(spec.health_url, timeout=timeout_s) as response:  # noqa: S310  the plan's own http URL
            body = response.read()
    except (OSError, http.client.HTTPException, ValueError):
        return False
    if not spec.needs_engine:
        return True
    try:
        return bool(json.loads(body).get("engines"))
    except (ValueError, AttributeError):
        return False


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
