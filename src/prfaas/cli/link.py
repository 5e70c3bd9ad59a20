"""`prfaas link`: what a running `prfaas wan` emulates, in words or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from prfaas.cli.arguments import BadArgument, host_port
from prfaas.core.errors import PrfaasError
from prfaas.wan.client import WanUnreachable, change, links, settings_of, shown
from prfaas.wan.command import read_links


def run(
    file: Path, ends: tuple[str | None, str | None], settings: list[str], control: str | None, *, as_json: bool
) -> int:
    """The exit status: 2 for bad input, also if `prfaas wan` refuses it; 1 if it does not answer."""
    try:
        address = host_port("--control", control) if control is not None else read_links(file)[0]
        found = _asked(address, ends, settings)
    except WanUnreachable as error:
        typer.echo(str(error), err=True)
        return 1
    except PrfaasError as error:
        typer.echo(str(error), err=True)
        return 2
    typer.echo(json.dumps({"links": found}) if as_json else "\n".join(map(shown, found)))
    return 0


def _asked(
    address: tuple[str, int], ends: tuple[str | None, str | None], settings: list[str]
) -> list[dict[str, object]]:
    source, target = ends
    if source is None:
        return links(address)
    if target is None:
        raise BadArgument("give both ends of a link, FROM and TO, or none to see all links")
    return [change(address, source, target, settings_of(settings))]
