"""The workload that a deployment file asks for."""

from __future__ import annotations

from pathlib import Path

from prfaas.core.errors import PrfaasError
from prfaas.core.planning.trace import TracedRequest, TraceError, read_trace
from prfaas.core.planning.workload import Empirical, TruncatedLogNormal, Workload, constant
from prfaas.deployment.model import InputTokens, Trace


class TraceUnusable(PrfaasError):
    """A trace file cannot be read; the text names file, line and what is wrong."""


def read_workload(section: InputTokens, directory: Path) -> tuple[Workload, float | None]:
    """Distribution of uncached lengths, and the mean output length if a trace says it. Traces are read relative to
    `directory`. Raises WorkloadError or TraceUnusable."""
    if section.lognormal is not None:
        form = section.lognormal
        return TruncatedLogNormal(form.mu, form.sigma, form.min, form.max), None
    if section.constant is not None:
        return constant(section.constant), None
    assert section.trace is not None
    return _traced(section.trace, directory)


def read_trace_file(path: Path, shown: str, block_tokens: int) -> list[TracedRequest]:
    """The requests of a trace file, by time. Raises TraceUnusable, in which the file is called `shown`."""
    try:
        with path.open("rb") as lines:
            return read_trace(lines, block_tokens=block_tokens)
    except OSError as error:
        raise TraceUnusable(f"{shown}: {error.strerror or error}") from None
    except TraceError as error:
        raise TraceUnusable(f"{shown}: {error}") from None


def _traced(section: Trace, directory: Path) -> tuple[Workload, float]:
    requests = read_trace_file(directory / section.file, section.file, section.block_tokens)
    lengths = [r.uncached_tokens if section.lengths == "uncached" else r.input_tokens for r in requests]
    return Empirical(lengths), sum(request.output_tokens for request in requests) / len(requests)
