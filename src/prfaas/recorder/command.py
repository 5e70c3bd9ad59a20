"""Fetches what a gateway has recorded and writes it as a trace, by which `plan` and `simulate` can be run."""

from __future__ import annotations

import http.client
import io
import json
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from prfaas.core.errors import PrfaasError
from prfaas.whole_file import open_told

#: Requests of one answer.
PAGE: Final = 500
TIMEOUT_S: Final = 30.0


#: Of an answer that is no gateway's, so many characters are shown.
_SHOWN: Final = 120


class BadRecording(PrfaasError):
    """The command line asks for what cannot be; the text says what to write instead."""


class NoRecording(PrfaasError):
    """The gateway does not answer, or has nothing; the text says what to do."""


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """`follow`: go on until Ctrl-C, asking every `every_s`; a gateway that is away is asked again."""

    gateway: str
    out: Path
    follow: bool = False
    every_s: float = 2.0


@dataclass
class _Progress:
    after: int = 0
    life: str | None = None
    num_written: int = 0
    num_lost: int = 0
    num_without_usage: int = 0
    num_left_out: int = 0
    block_tokens: int = 0
    offset_ms: int = 0
    last_ms: int = 0


def run(options: RecordOptions) -> int:
    """Returns 0; after saying on standard error what is wrong 2 for bad input and 1 if something failed; 130 on Ctrl-C,
    unless `follow` was to end so. Before the gateway has answered once, a file that exists is not touched."""
    url = f"{options.gateway.rstrip('/')}/prfaas/trace"
    progress = _Progress()
    try:
        if not options.gateway.startswith(("http://", "https://")):
            raise BadRecording(f"{options.gateway}: not a URL; write for example http://127.0.0.1:8000")
        page = _fetch(url, progress)
        if not page["requests"] and not options.follow:
            raise NoRecording(f"{url}: nothing was recorded yet; send requests first, or give --follow")
        with _opened(options.out) as out:
            _write(out, page, progress)
            _rest(url, out, progress, options)
    except BadRecording as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except PrfaasError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        if progress.life is None:
            return 130  # the gateway has said nothing, and nothing is written
        _tell(options.out, progress)
        return 0 if options.follow else 130
    _tell(options.out, progress)
    return 0


def _rest(url: str, out: IO[str], progress: _Progress, options: RecordOptions) -> None:
    while True:
        page: dict[str, Any] = {"requests": []}
        try:
            page = _fetch(url, progress)
        except NoRecording as error:
            if not options.follow:
                raise
            sys.stderr.write(f"\r{error}; asking again\n")
        if not page["requests"]:
            if not options.follow:
                return
            time.sleep(options.every_s)
            continue
        _write(out, page, progress)
        sys.stderr.write(f"\r{progress.num_written} requests ")


def _fetch(url: str, progress: _Progress) -> dict[str, Any]:
    asked = f"{url}?after={progress.after}&most={PAGE}&life={progress.life or ''}"
    try:
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as reply:  # noqa: S310 - see `run`
            page = json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode("utf-8", "replace")
        raise NoRecording(f"{url}: {_said(error.code, text)}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NoRecording(f"{url}: no gateway answers there ({error})") from None
    if not isinstance(page, dict) or "requests" not in page:
        raise NoRecording(f"{url}: that is no PrfaaS gateway's answer")
    return page


def _said(status: int, text: str) -> str:
    """A gateway's own words; of anybody else's page one line at most."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        pass
    if status == 404:
        return "HTTP 404: no PrfaaS gateway is there, or its file has no gateway.record: true"
    line = " ".join(text.split())
    if not line or line.startswith("<"):
        return f"HTTP {status}"
    return f"HTTP {status}: {line[:_SHOWN]}{'…' if len(line) > _SHOWN else ''}"


def _opened(path: Path) -> IO[str]:
    try:
        return io.TextIOWrapper(open_told(path), encoding="utf-8")
    except OSError as error:
        raise BadRecording(f"--out {path}: {error.strerror}") from None


def _write(out: IO[str], page: dict[str, Any], progress: _Progress) -> None:
    if page["life"] != progress.life:
        if progress.life is not None:
            text = "the gateway was started anew; prefixes of before are not recognized in what follows"
            sys.stderr.write(f"\r{text}\n")
            # Times go on from where they were; requests come in the order of their ends.
            first_ms = min((line["timestamp"] for line in page["requests"]), default=0)
            progress.offset_ms = progress.last_ms - first_ms
        progress.life, progress.after = page["life"], 0
    progress.num_lost += page["lost"]
    progress.num_without_usage, progress.num_left_out = page["without_usage"], page["left_out"]
    for line in page["requests"]:
        block_tokens = line.pop("block_tokens")
        if block_tokens and progress.block_tokens not in (0, block_tokens):
            line["hash_ids"] = []
        elif block_tokens:
            progress.block_tokens = block_tokens
        line["timestamp"] = max(0, line["timestamp"] + progress.offset_ms)
        progress.last_ms = max(progress.last_ms, line["timestamp"])
        out.write(json.dumps(line, separators=(",", ":")) + "\n")
        progress.num_written += 1
    out.flush()
    progress.after = page["next"]


def _tell(out: Path, progress: _Progress) -> None:
    say = sys.stderr.write
    say(f"{out}: {progress.num_written} requests, in blocks of {progress.block_tokens or 'no'} tokens\n")
    if progress.num_without_usage:
        text = "answers of the gateway's life said no usage: their output_length is 0; clients ask for it with"
        say(f"{progress.num_without_usage} {text} stream_options.include_usage\n")
    if progress.num_left_out:
        say(f"{progress.num_left_out} requests of the gateway's life are left out: not answered, or not countable\n")
    if progress.num_lost:
        say(f"{progress.num_lost} requests were forgotten before they were fetched; run with --follow\n")
