"""`prfaas chaos`: options in, exit status out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path, typer.Argument(help="Deployment file (YAML) that `prfaas up` runs.", show_default=False)]


def chaos(
    file: File,
    faults: Annotated[
        list[str] | None,
        typer.Option("--fault", metavar="FAULT", help="`5s kill gateway`, `cut WEST EAST 3s`, …; repeat. See --list."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the load, and of the faults if none are given.")] = 0,
    duration: Annotated[
        str, typer.Option(metavar="TIME", help="Of the run: a quarter before the faults, half with them.")
    ] = "20s",
    recovery: Annotated[
        str, typer.Option(metavar="TIME", help="Longest time from the last fault until all is as before.")
    ] = "20s",
    rate: Annotated[
        float | None, typer.Option(min=1e-6, help="Requests a second, as the file counts; default: half of the plan.")
    ] = None,
    leave: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of clients that leave before their answer is whole.")
    ] = 0.05,
    logs: Annotated[Path, typer.Option(help="Where `prfaas up` has its logs.")] = Path("prfaas-logs"),
    lists: Annotated[bool, typer.Option("--list", help="Show what can be done to the deployment, and end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the faults and their times, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Do faults to a running deployment under load, undo them, and account for every request."""
    from prfaas.chaos.command import ChaosOptions, run
    from prfaas.cli.arguments import seconds
    from prfaas.core.errors import PrfaasError

    try:
        duration_s, recovery_s = seconds("--duration", duration), seconds("--recovery", recovery)
    except PrfaasError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    options = ChaosOptions(
        file,
        logs,
        tuple(faults or ()),
        seed,
        duration_s or 0.0,
        recovery_s or 0.0,
        rate,
        leave,
        lists,
        dry_run,
        as_json,
    )
    raise typer.Exit(run(options))
