"""`prfaas chaos`: options in; the plan, what happened, and the ledger out."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

from prfaas.chaos.answers import answers_of
from prfaas.chaos.draw import drawn_faults
from prfaas.chaos.faults import BadFault, Fault, Kind, read_faults
from prfaas.chaos.report import plan_lines, report_lines, to_json
from prfaas.chaos.run import Phases, Result, RunOptions, run_once
from prfaas.chaos.site import Site, refuse_without_gateway, site_of
from prfaas.core.errors import PrfaasError
from prfaas.core.planning.solve import solve
from prfaas.launch.state_file import NotUp
from prfaas.scenario.build import build_scenario
from prfaas.wan.client import WanRefused, WanUnreachable

#: Of what the plan could serve, where nobody says another rate.
LOAD: Final = 0.5
#: Of the whole time that is asked for: before the faults, and with them. The rest is for what comes after.
BEFORE_SHARE: Final = 0.25
FAULTS_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """As they stand on the command line. Without `faults`, the seed draws them."""

    file: Path
    logs: Path
    faults: tuple[str, ...] = ()
    seed: int = 0
    duration_s: float = 20.0
    recovery_s: float = 20.0
    rate_rps: float | None = None
    leave_share: float = 0.05
    lists: bool = False
    dry_run: bool = False
    as_json: bool = False


def run(options: ChaosOptions) -> int:
    """0 if everything holds; 1 if something does not, or the deployment is not up; 2 for bad input; 130 on Ctrl-C or
    SIGTERM, when the faults are undone."""
    try:
        return _run(options)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; every fault is undone\n")
        return 130
    except ExceptionGroup as group:
        sys.stderr.writelines(f"{error}\n" for error in group.exceptions)
        return 1
    except PrfaasError as error:
        sys.stderr.write(f"{error}\n")
        return 1 if isinstance(error, (NotUp, WanUnreachable, WanRefused)) else 2


def _run(options: ChaosOptions) -> int:
    site = site_of(options.file, options.logs)
    if options.lists:
        sys.stdout.writelines(f"{line}\n" for line in site.menu.lines())
        return 0
    phases = phases_of(options.duration_s, options.recovery_s)
    faults = _faults(options, site, phases)
    phases = phases.until(max((fault.ends_s for fault in faults), default=0.0))
    tell = _silent if options.as_json else _told
    tell(f"seed {options.seed}: {options.duration_s:g} s, then at most {options.recovery_s:g} s until all is as before")
    for line in plan_lines(faults):
        tell(line)
    if options.dry_run:
        return 0
    refuse_without_gateway(site)
    _refuse_lasting_kills(site, faults)
    rate_rps = planned_rps(site) * LOAD if options.rate_rps is None else options.rate_rps
    run_options = RunOptions(options.seed, faults, phases, rate_rps, options.leave_share)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_until_stopped(run_once(site, run_options, answers_of(site), tell)))
    if options.as_json:
        sys.stdout.write(json.dumps(to_json(result), indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in report_lines(result))
    return 0 if result.is_fine else 1


async def _until_stopped(work: Coroutine[Any, Any, Result]) -> Result:
    """Raises KeyboardInterrupt on Ctrl-C and SIGTERM, after the faults are undone."""
    loop, task, is_stopped = asyncio.get_running_loop(), asyncio.create_task(work), False

    def stop() -> None:
        nonlocal is_stopped
        is_stopped = True
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if is_stopped:
            raise KeyboardInterrupt from None
        raise


def phases_of(duration_s: float, recovery_s: float) -> Phases:
    """Of a run of `duration_s`, if all is well soon."""
    before_s, faults_s = duration_s * BEFORE_SHARE, duration_s * FAULTS_SHARE
    return Phases(before_s, faults_s, duration_s - before_s - faults_s, recovery_s)


def planned_rps(site: Site) -> float:
    """What the plan could serve, as the file counts. Raises PrfaasError."""
    if site.deployment.workload is None:
        raise BadFault(f"{site.file}: workload: missing; it says how long prompts are and how many come")
    return solve(build_scenario(site.file)).system_rps


def _faults(options: ChaosOptions, site: Site, phases: Phases) -> tuple[Fault, ...]:
    if options.faults:
        return read_faults(options.faults, site.menu, phases.before_s)
    return drawn_faults(site.menu, options.seed, phases.before_s, phases.faults_s)


def _refuse_lasting_kills(site: Site, faults: tuple[Fault, ...]) -> None:
    if any(fault.kind is Kind.KILL for fault in faults) and not site.state().restarts:
        raise BadFault("nobody would start again what is killed: start the deployment with 'prfaas up --restart'")


def _told(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _silent(line: str) -> None:
    """Standard output is for JSON alone."""
