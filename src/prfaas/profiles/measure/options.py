"""What the command line asks for, checked before anything is sent, and the schedule made of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from prfaas.core.errors import PrfaasError
from prfaas.profiles.measure.samples import log_grid

#: Limits of the file's reader (prfaas.profiles.format), and a day for one answer: more is a slip of the keyboard.
_MAX_TOKENS: Final = 1 << 27
_MAX_BATCH: Final = 1 << 20
_MAX_GPUS: Final = 1024
_MAX_TIMEOUT_S: Final = 86400.0
_MAX_REPEATS: Final = 1000

#: Output may grow to this many times --decode-tokens where sequences start so far apart that they hardly overlap.
_MORE_DECODED: Final = 16


class BadProfileRequest(PrfaasError):
    """The command line asks for something that cannot be; the text says what to write instead."""


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """What the command line says. `max_tokens` None: as much as the model takes. `seed`: of the order; prompts are new
    in every run."""

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


@dataclass(frozen=True, slots=True)
class Schedule:
    """What to measure: prompt lengths, batches of decoding sequences, and how often. `decode_tokens` of output may
    become up to `max_decode_tokens` where sequences would not overlap."""

    lengths: tuple[int, ...]
    repeats: int
    decode_batches: tuple[int, ...]
    decode_tokens: int
    max_decode_tokens: int
    decode_context_tokens: int

    @property
    def num_steps(self) -> int:
        """Measurements, warm-ups included."""
        return len(self.lengths) * (self.repeats + 1) + len(self.decode_batches) * (self.repeats + 1)


def check_options(options: ProfileOptions) -> None:
    """Raises BadProfileRequest for the first thing that cannot be."""
    check_url(options.url)
    for name, value, largest in (
        ("--gpus-per-instance", options.gpus_per_instance, _MAX_GPUS),
        ("--min-tokens", options.min_tokens, _MAX_TOKENS),
        ("--max-tokens", options.max_tokens, _MAX_TOKENS),
        ("--num-lengths", options.num_lengths, _MAX_REPEATS),
        ("--repeats", options.repeats, _MAX_REPEATS),
        ("--decode-tokens", options.decode_tokens, _MAX_TOKENS),
        ("--decode-context", options.decode_context_tokens, _MAX_TOKENS),
        ("--timeout", options.timeout_s, _MAX_TIMEOUT_S),
        *(("--decode-batches", batch, _MAX_BATCH) for batch in options.decode_batches or (0,)),
    ):
        if value is not None and not 0 < value <= largest:
            raise BadProfileRequest(f"{name} {value}: give a number from 1 to {largest:g}")
    if options.max_tokens is not None and options.min_tokens > options.max_tokens:
        raise BadProfileRequest(f"--min-tokens {options.min_tokens} is more than --max-tokens {options.max_tokens}")
    _check_out(options)


def schedule_of(options: ProfileOptions, max_model_tokens: int | None) -> Schedule:
    """What to measure on a model that takes `max_model_tokens`, prompt and output together; None if the server does not
    tell. Raises BadProfileRequest."""
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
    most_decoded = _MORE_DECODED * options.decode_tokens
    if max_model_tokens is not None:
        context = min(context, max_model_tokens - options.decode_tokens)
        most_decoded = min(most_decoded, max_model_tokens - context)
    if context < 1:
        raise BadProfileRequest(f"--decode-tokens {options.decode_tokens}: the model takes {max_model_tokens} tokens")
    lengths = log_grid(options.min_tokens, longest, options.num_lengths)
    batches = tuple(sorted(set(options.decode_batches)))
    return Schedule(tuple(lengths), options.repeats, batches, options.decode_tokens, most_decoded, context)


def check_url(url: str) -> None:
    """Raises BadProfileRequest unless it is the base URL of a server."""
    problem = None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        problem = f"{url!r} is not a URL ({error})"
    else:
        if "@" in parts.netloc:  # not shown: it may hold a password
            problem = "the URL must not hold a user or a password; a key goes into OPENAI_API_KEY"
        elif parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            problem = f"{url!r} is not a URL of a server"
        elif parts.query or parts.fragment:
            problem = f"{url!r}: give it without ? and #"
    if problem is not None:
        raise BadProfileRequest(f"{problem}; write for example http://127.0.0.1:8000")


def _check_out(options: ProfileOptions) -> None:
    """As far as can be known now: after an hour of measuring is too late."""
    try:
        _check_place(options)
    except OSError as error:
        raise BadProfileRequest(f"--out {options.out}: {error.strerror or error}") from None


def _check_place(options: ProfileOptions) -> None:
    folder = options.out.resolve().parent
    if options.out.is_dir():
        raise BadProfileRequest(f"--out {options.out}: this is a folder; name a file in it")
    if options.out.exists() and not options.overwrite:
        raise BadProfileRequest(f"{options.out} exists; choose another --out, or add --overwrite")
    if not folder.is_dir():
        raise BadProfileRequest(f"--out {options.out}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise BadProfileRequest(f"--out {options.out}: the folder {folder} cannot be written to")
