"""`prfaas profile URL`: options in, exit status out."""

from __future__ import annotations

import asyncio
import datetime
import os
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from prfaas.core.errors import PrfaasError
from prfaas.profiling.endpoint import Endpoint, open_session
from prfaas.profiling.measure import Measured, Measurement, Schedule
from prfaas.profiling.profile_file import profile_text
from prfaas.profiling.samples import log_grid


class BadProfileRequest(PrfaasError):
    """The command line asks for something that cannot be; the text says what to write instead."""


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """What the command line says. `max_tokens` None: as much as the model takes."""

    url: str
    out: Path
    model: str | None = None
    accelerator: str = "unknown"
    gpus_per_instance: int = 8
    min_tokens: int = 128
    max_tokens: int | None = None
    num_lengths: int = 8
    repeats: int = 3
    decode_batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    decode_tokens: int = 64
    decode_context_tokens: int = 1024
    timeout_s: float = 600.0
    seed: int = 0
    overwrite: bool = False


def run(options: ProfileOptions) -> int:
    """0 once the file is written; 1 if measuring failed, 2 for bad input, 130 on Ctrl-C: nothing is written then."""
    console = Console(stderr=True)
    try:
        _check(options)
        measured, model = asyncio.run(_measure(options, console))
        _write(
            options,
            profile_text(measured, model, options.accelerator, options.gpus_per_instance, _source(options, measured)),
        )
    except BadProfileRequest as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (PrfaasError, OSError) as error:
        sys.stderr.write(f"measuring failed: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was written\n")
        return 130
    for table in _tables(measured):
        console.print(table)
    sys.stderr.write(f"wrote {options.out}; name it as clusters.NAME.profile in a deployment file\n")
    return 0


def _check(options: ProfileOptions) -> None:
    parts = urlsplit(options.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadProfileRequest(f"{options.url!r} is not a URL; write for example http://127.0.0.1:8000")
    if options.max_tokens is not None and options.min_tokens > options.max_tokens:
        raise BadProfileRequest(f"--min-tokens {options.min_tokens} is more than --max-tokens {options.max_tokens}")
    if not options.decode_batches or min(options.decode_batches) < 1:
        raise BadProfileRequest("--decode-batches must be positive numbers, for example 1,2,4,8")
    if options.out.exists() and not options.overwrite:
        raise BadProfileRequest(f"{options.out} exists; choose another --out, or add --overwrite")
    if not options.out.resolve().parent.is_dir():
        raise BadProfileRequest(f"--out {options.out}: there is no folder {options.out.resolve().parent}")


async def _measure(options: ProfileOptions, console: Console) -> tuple[Measured, str]:
    async with open_session(os.environ.get("OPENAI_API_KEY")) as session:
        endpoint = Endpoint(session, options.url, options.timeout_s)
        await endpoint.choose_model(options.model)
        schedule = _schedule(options, endpoint.max_model_tokens)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(f"measuring {endpoint.model}", total=schedule.num_steps)
            told: set[str] = set()

            def advance(what: str) -> None:
                progress.update(task, advance=1, description=what)
                if not console.is_terminal and what not in told:
                    told.add(what)
                    sys.stderr.write(f"{what}\n")

            measurement = Measurement(endpoint, random.Random(options.seed), advance)
            return await measurement.run(schedule), endpoint.model


def _schedule(options: ProfileOptions, max_model_tokens: int | None) -> Schedule:
    longest = options.max_tokens
    if longest is None:
        if max_model_tokens is None:
            raise BadProfileRequest("the server does not say how long prompts may be; give --max-tokens")
        longest = max_model_tokens - 1
    elif max_model_tokens is not None and longest >= max_model_tokens:
        raise BadProfileRequest(f"--max-tokens {longest}: the model takes {max_model_tokens} tokens with its output")
    if options.min_tokens > longest:
        raise BadProfileRequest(f"--min-tokens {options.min_tokens}: the longest prompt is {longest} tokens")
    context = options.decode_context_tokens
    if max_model_tokens is not None:
        context = min(context, max_model_tokens - options.decode_tokens)
    if context < 1:
        raise BadProfileRequest(f"--decode-tokens {options.decode_tokens}: the model takes {max_model_tokens} tokens")
    lengths = log_grid(options.min_tokens, longest, options.num_lengths)
    return Schedule(
        tuple(lengths), options.repeats, tuple(sorted(set(options.decode_batches))), options.decode_tokens, context
    )


def _source(options: ProfileOptions, measured: Measured) -> str:
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    host = urlsplit(options.url).netloc.rpartition("@")[2]
    form = "text, lengths by the server's count" if measured.sends_text else "random tokens"
    text = (
        f"prfaas profile of {host}, {day}: medians of {options.repeats} after one warm-up each, {form},"
        f" decode at {measured.decode_context_tokens} tokens of context"
    )
    return text + (f", {measured.num_retries} samples repeated" if measured.num_retries else "")


def _write(options: ProfileOptions, text: str) -> None:
    """The whole file or none."""
    handle, temporary = tempfile.mkstemp(dir=options.out.resolve().parent, prefix=f".{options.out.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, options.out)
    except BaseException:
        os.unlink(temporary)
        raise


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
