"""Tables of docs/benchmarks/adaptive.md, and what its pictures show in words. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.case_study.adaptive_samples import Done, Sample, Seen, between, windows
from prfaas.demo.case_study import BYTES_SCALE

GBPS: Final = 1e9 / 8
#: The solved threshold of 64 prompts, the fewest of which one is solved, lies so near to the planned one in 95 of 100.
BAND: Final = 0.25


def steps_of(seen: Seen) -> list[tuple[float, int, int]]:
    """When there was another split, and how many then prefill and decode."""
    found: list[tuple[float, int, int]] = []
    for sample in seen.samples:
        if not found or found[-1][1:] != (sample.num_prefill, sample.num_decode):
            found.append((sample.at_s, sample.num_prefill, sample.num_decode))
    return found


def _head(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def duties_table(stories: Sequence[Done]) -> list[str]:
    """Steps of the split, and what clients waited for in the last quarter."""
    lines = _head(
        "began with", "", "split, and when it was reached, s", "TTFT mean in the last quarter, s",
        "first tokens a second there, times the scale", "failed",
    )  # fmt: skip
    for done in stories:
        for label, seen in done.ends:
            first, *steps = steps_of(seen)
            told = ", ".join(f"{p}/{d} at {at_s:.0f}" for at_s, p, d in steps) or "none"
            from_s = 0.75 * done.until_s
            last = windows(seen.asked, [from_s, done.until_s])[0]
            rate_rps = last.num / (done.until_s - from_s) * done.time_scale
            lines.append(
                f"| {first[1]}/{first[2]} | {label} | {told} | {last.ttft_s_mean:.1f} | {rate_rps:.2f} |"
                f" {seen.num_failed} |"
            )
    return lines


def reached_s(samples: Sequence[Sample], tokens: float, band: float) -> float | None:
    """When the threshold came within so much of it, and stayed there."""
    last: float | None = None
    for sample in samples:
        threshold = sample.threshold_tokens
        is_near = threshold is not None and abs(threshold - tokens) <= band * tokens
        last = (sample.at_s if last is None else last) if is_near else None
    return last


def threshold_table(stories: Sequence[Done]) -> list[str]:
    lines = _head(
        "began with", "", f"within {BAND:.0%} of the plan after, s", "the same of the real deployment, s",
        "prompts seen", "at the end", "TTFT mean, s", "offloaded", "failed",
    )  # fmt: skip
    for done in stories:
        for label, seen in done.ends:
            at_s = reached_s(seen.samples, done.planned_threshold_tokens, BAND)
            num = next((s.num_lengths_seen for s in seen.samples if s.at_s == at_s), 0)
            whole = windows(seen.asked, [0.0, math.inf])[0]
            times = "never | never" if at_s is None else f"{at_s:.0f} | {at_s / done.time_scale:.0f}"
            lines.append(
                f"| {_tokens(seen.samples[0])} | {label} | {times} | {num} | {_tokens(seen.samples[-1])} |"
                f" {whole.ttft_s_mean:.2f} | {whole.offload_fraction:.0%} | {seen.num_failed} |"
            )
    return lines


def link_table(stories: Sequence[Done]) -> list[str]:
    lines = _head(
        "link", "", "expected, Gbps", "crossed, Gbps", "solved threshold", "offloaded", "TTFT mean, s",
        "prompts that wait", "given up", "failed",
    )  # fmt: skip
    for done in stories:
        edges_s = [0.0, *done.change_s, done.until_s]
        rates = ["100 Gbps", *(f"{gbps:g} Gbps" for _, gbps in done.story.conditions)]
        for number, rate in enumerate(rates):
            for label, seen in done.ends:
                cells = _phase(done, seen, edges_s[number], edges_s[number + 1])
                lines.append(f"| {rate if label == 'processes' else ''} | {label} | {' | '.join(cells)} |")
    return lines


def _phase(done: Done, seen: Seen, from_s: float, to_s: float) -> list[str]:
    """The figures of its second half, when what was before has gone; those given up and failed, of all of it."""
    middle_s = (from_s + to_s) / 2
    late = between(seen.samples, middle_s, to_s)
    window = windows(seen.asked, [middle_s, to_s])[0]
    came = [one for one in seen.asked if from_s <= one.arrival_s < to_s]
    slower = BYTES_SCALE / done.time_scale
    crossed = (late[-1].sent_bytes - late[0].sent_bytes) / (late[-1].at_s - late[0].at_s)
    thresholds = [sample.threshold_tokens for sample in late if sample.threshold_tokens is not None]
    return [
        f"{_mean([sample.link_bytes_per_s for sample in late]) / slower / GBPS:.0f}",
        f"{crossed / slower / GBPS:.1f}",
        f"{_mean(thresholds):,.0f}",
        f"{window.offload_fraction:.0%}",
        f"{window.ttft_s_mean:.2f}",
        f"{_mean([sum(sample.num_waiting.values()) for sample in late]):.1f}",
        str(sum(bool(one.fallback) for one in came)),
        str(sum(one.has_failed for one in came)),
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _tokens(sample: Sample) -> str:
    return "none" if sample.threshold_tokens is None else f"{sample.threshold_tokens:,}"


TABLES: Final[dict[str, Callable[[Sequence[Done]], list[str]]]] = {
    "duties": duties_table,
    "threshold": threshold_table,
    "link": link_table,
}


# The same in words


def duties_words(done: Done) -> str:
    told = []
    for label, seen in done.ends:
        _, *steps = steps_of(seen)
        told.append(f"{label} {', '.join(f'{p}/{d} at {at_s:.0f} s' for at_s, p, d in steps) or 'nothing'}")
    return f"{_sentence(done.story.about)}: {'; '.join(told)}."


def threshold_words(done: Done) -> str:
    told = []
    for label, seen in done.ends:
        at_s = reached_s(seen.samples, done.planned_threshold_tokens, BAND)
        told.append(f"{label} {'never' if at_s is None else f'after {at_s:.0f} s'}")
    began, planned = _tokens(done.system.samples[0]), f"{done.planned_threshold_tokens:,.0f}"
    return f"Begins with {began} tokens, and is within {BAND:.0%} of the planned {planned}: {'; '.join(told)}."


def link_words(done: Done) -> str:
    edges_s = [0.0, *done.change_s, done.until_s]
    rates = ["100 Gbps", *(f"{gbps:g} Gbps" for _, gbps in done.story.conditions)]
    told = []
    for number, rate in enumerate(rates):
        cells = [(label, _phase(done, seen, edges_s[number], edges_s[number + 1])) for label, seen in done.ends]
        parts = "; ".join(f"{label} {cell[3]} offloaded, {cell[4]} s to the first token" for label, cell in cells)
        told.append(f"{rate}: {parts}.")
    return " ".join(told)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


WORDS: Final[dict[str, Callable[[Done], str]]] = {
    "duties": duties_words,
    "threshold": threshold_words,
    "link": link_words,
}
