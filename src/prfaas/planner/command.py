"""`prfaas plan`: one or several deployment files in; tables, one JSON object, a picture out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prfaas.core.errors import PrfaasError
from prfaas.core.planning.plan import Plan, make_plan
from prfaas.core.planning.scenario import ServiceTime
from prfaas.scenario.build import build_scenario
from prfaas.whole_file import CannotWrite

#: What `--plot` can write, by the file's ending.
PLOT_ENDINGS = (".png", ".svg", ".html")


class BadPlanRequest(PrfaasError):
    """The command line asks for something that cannot be; the text says what to write instead."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the command line says."""

    files: tuple[Path, ...]
    compare: bool = False
    as_json: bool = False
    plot: Path | None = None
    service_time: ServiceTime = ServiceTime.AT_MEAN


def run(options: PlanOptions) -> int:
    """Returns 0; 2 after saying on standard error what is wrong with the input, when nothing is written; 1 if the
    picture cannot be written."""
    try:
        _check(options)
        named = [(path.stem, _plan(path, options.service_time)) for path in options.files]
    except PrfaasError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if options.plot is not None:
        from prfaas.planner.pictures import write_picture  # matplotlib takes half a second to import

        try:
            write_picture(options.plot, named)
        except CannotWrite as error:
            sys.stderr.write(f"{error}\n")
            return 1
        except OSError as error:
            sys.stderr.write(f"--plot {options.plot}: {error.strerror or error}\n")
            return 2
    if options.as_json:
        sys.stdout.write(json.dumps(_as_json(options, named), indent=2, allow_nan=False) + "\n")
    else:
        _print(named)
    if options.plot is not None:
        sys.stderr.write(f"wrote {options.plot}\n")
    return 0


def _check(options: PlanOptions) -> None:
    if len(options.files) > 1 and not options.compare:
        raise BadPlanRequest("several files: add --compare to print their plans side by side")
    if options.compare and len(options.files) < 2:
        raise BadPlanRequest("--compare needs two files or more; the first is the baseline")
    if options.plot is not None:
        if options.plot.suffix.lower() not in PLOT_ENDINGS:
            raise BadPlanRequest(f"--plot {options.plot}: the file must end in {', '.join(PLOT_ENDINGS)}")
        try:
            has_folder = options.plot.resolve().parent.is_dir()
        except OSError as error:
            raise BadPlanRequest(f"--plot {options.plot}: {error.strerror or error}") from None
        if not has_folder:
            raise BadPlanRequest(f"--plot {options.plot}: there is no folder {options.plot.resolve().parent}")


def _plan(path: Path, service_time: ServiceTime) -> Plan:
    try:
        return make_plan(build_scenario(path, service_time))
    except PrfaasError as error:
        # Errors of the file name it and its line; those of the planning name a section.
        text = str(error)
        raise BadPlanRequest(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _as_json(options: PlanOptions, named: Sequence[tuple[str, Plan]]) -> dict[str, object]:
    if not options.compare:
        return named[0][1].to_json()
    from prfaas.planner.report import ratios

    relative = ratios(named)
    keys = {
        "throughput": "ratio_system_rps",
        "mean TTFT": "ratio_ttft_s_mean",
        "P90 TTFT": "ratio_ttft_s_p90",
        "throughput at equal cost": "ratio_at_equal_cost",
    }
    plans = []
    for index, (path, (name, plan)) in enumerate(zip(options.files, named, strict=True)):
        own = {key: relative[label][index] if label in relative else None for label, key in keys.items()}
        plans.append({"name": name, "file": str(path), **own, **plan.to_json()})
    return {"baseline": named[0][0], "plans": plans}


def _print(named: Sequence[tuple[str, Plan]]) -> None:
    from rich.console import Console

    from prfaas.planner.report import print_comparison, print_plan

    console = Console(width=None if sys.stdout.isatty() else 120)
    if len(named) > 1:
        print_comparison(console, named)
    else:
        print_plan(console, *named[0])
