"""The health of supervised processes, as a person sees it: a live table on a terminal, lines in a log."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table

from prfaas.launch.supervisor import Running, Supervisor


def state_of(running: Running) -> str:
    """One word or two."""
    if running.is_alive:
        return "healthy" if running.healthy else "not healthy" if running.was_healthy else "starting"
    return f"ended ({running.popen.returncode})"


_STYLES = {"healthy": "green", "starting": "yellow"}


def health_table(supervisor: Supervisor) -> Table:
    table = Table(title=f"PrfaaS processes; logs are in {supervisor.logs}/", title_justify="left")
    for column in ("process", "pid", "health", "address"):
        table.add_column(column, no_wrap=True)
    for name, running in supervisor.processes.items():
        state = state_of(running)
        address = running.spec.health_url.rpartition("/")[0]
        table.add_row(name, str(running.pid), f"[{_STYLES.get(state, 'red')}]{state}[/]", address)
    return table


class Changes:
    """Prints each change of health once, so that a terminal and a log file can both show it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_s = time.monotonic()
        self._told: dict[str, str] = {}

    def tick(self, supervisor: Supervisor) -> None:
        """Called after each probe. Ends are told by whoever asks `newly_ended`: they need more than a line."""
        for name, running in supervisor.processes.items():
            state, before = state_of(running), self._told.get(name, "starting")
            if state == before or not running.is_alive:
                continue
            self._told[name] = state
            elapsed = f"{time.monotonic() - self._started_s:.0f} s"
            text = f"is up after {elapsed}" if before == "starting" else f"is {state} after {elapsed}"
            self._console.print(f"  {name} {text}", highlight=False)
