"""`prfaas profile URL`: options in, exit status out."""

from __future__ import annotations

import asyncio
import datetime
import os
import random
import secrets
import sys
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from prfaas.core.errors import PrfaasError
from prfaas.profiles.measure.endpoint import Endpoint, open_session
from prfaas.profiles.measure.measurement import Measured, Measurement
from prfaas.profiles.measure.options import BadProfileRequest, ProfileOptions, check_options, schedule_of
from prfaas.profiles.measure.profile_file import profile_text
from prfaas.whole_file import CannotWrite, written_whole

__all__ = ["ProfileOptions", "run", "write_whole"]


def run(options: ProfileOptions) -> int:
    """0 once the file is written; 1 if measuring failed, 2 for bad input, 130 on Ctrl-C: nothing is written then. A key
    is taken from the environment variable OPENAI_API_KEY."""
    console = Console(stderr=True)
    try:
        check_options(options)
        measured, model = asyncio.run(_measure(options, _api_key(), console))
        for table in _tables(measured):
            console.print(table)
        source = _source(options, measured)
        write_whole(options.out, profile_text(measured, model, options.accelerator, options.gpus_per_instance, source))
    except BadProfileRequest as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except CannotWrite as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except PrfaasError as error:
        sys.stderr.write(f"measuring failed: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{options.out} cannot be written: {error.strerror or error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was written\n")
        return 130
    sys.stderr.write(f"wrote {options.out}; name it as clusters.NAME.profile in a deployment file\n")
    return 0


def _api_key() -> str | None:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key.isprintable():
        raise BadProfileRequest("OPENAI_API_KEY holds a line break or a control character; set it again")
    return key or None


async def _measure(options: ProfileOptions, api_key: str | None, console: Console) -> tuple[Measured, str]:
    async with open_session(api_key) as session:
        endpoint = Endpoint(session, options.url, options.timeout_s)
        await endpoint.choose_model(options.model)
        schedule = schedule_of(options, endpoint.max_model_tokens)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(f"measuring {endpoint.model}", total=schedule.num_steps)
            told: set[str] = set()

            def advance(what: str) -> None:
                progress.update(task, advance=1, description=what)
                if not console.is_terminal and what not in told:
                    told.add(what)
                    sys.stderr.write(f"{what}\n")

            # The seed decides the order only. Prompts of an earlier run may still be in the server's prefix cache.
            order, prompts = random.Random(options.seed), random.Random(secrets.randbits(128))
            return await Measurement(endpoint, order, prompts, advance).run(schedule), endpoint.model


def _source(options: ProfileOptions, measured: Measured) -> str:
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    host = urlsplit(options.url).netloc.rpartition("@")[2]
    form = "text, lengths by the server's count" if measured.sends_text else "random tokens"
    text = (
        f"prfaas profile of {host}, {day}: medians of {options.repeats} after one warm-up each, {form},"
        f" decode at {measured.decode_context_tokens} tokens of context"
    )
    return text + (f", {measured.num_retries} samples repeated" if measured.num_retries else "")


def write_whole(out: Path, text: str) -> None:
    """The whole file or none; nothing else stays in its folder. Raises OSError or CannotWrite."""
    with written_whole(out) as file:
        file.write(text.encode())


def _tables(measured: Measured) -> list[Table]:
    prefill = Table(title="prefill", title_justify="left", box=None)
    decode = Table(title="decode", title_justify="left", box=None)
    for table, first in ((prefill, "tokens"), (decode, "sequences")):
        for name in (first, "median s", "min s", "max s", "tokens/s"):
            table.add_column(name, justify="right")
    for table, rows in ((prefill, measured.prefill), (decode, measured.decode)):
        for row in rows:
            times = (row.median_s, min(row.seconds), max(row.seconds))
            table.add_row(f"{row.at:,}", *(f"{value:.4f}" for value in times), f"{row.at / row.median_s:,.0f}")
    return [prefill, decode]
