"""What is equal to the last bit, and how large every other difference is: offloading beside what vLLM does alone.

`python -m benchmarks.equality.rounding [--model qwen3-next] [--prompts-per-length 6] [--no-float32] [--json]`: a local
answer is the decode engine's own to one prompt at a time. It is compared with the offloaded answer, with local ones in
a batch, in other chunks and resumed, and all of them with the same weights in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.equality.float32 import first_tokens
from benchmarks.equality.runs import CHUNK_TOKENS, NUM_AT_ONCE, OTHER_CHUNK_TOKENS, Runs, collect
from prfaas.demo.tiny_models import MODELS, make_model
from prfaas.testing.rounding import first_token_gap, widest_gap
from prfaas.testing.site import Answer


@dataclass(frozen=True, slots=True)
class Row:
    """Answers of one kind against what they are compared with. Gaps are |Δlogprob| of the first token."""

    title: str
    num_prompts: int
    equal_answers: int
    equal_first_tokens: int
    first_token_gaps: list[float]
    widest_gaps: list[float]


def compared(title: str, expected: Sequence[Answer], found: Sequence[Answer]) -> Row:
    """One row, of answers to the same prompts in the same order."""
    pairs = list(zip(expected, found, strict=True))
    return Row(
        title,
        len(pairs),
        sum(one.tokens == other.tokens for one, other in pairs),
        sum(one.tokens[0] == other.tokens[0] for one, other in pairs),
        [first_token_gap(one, other) for one, other in pairs],
        [widest_gap(one, other) for one, other in pairs],
    )


def rows_of_engines(runs: Runs) -> Iterator[Row]:
    """Against the local answer."""
    yield compared("local, the same again", runs.local, runs.again)
    yield compared("offloaded, last token in the same kernels", runs.exact_expected, runs.exact)
    yield compared("offloaded, as a client sends it", runs.local, runs.offloaded)
    yield compared(f"local, {NUM_AT_ONCE} at once", runs.local, runs.together)
    yield compared(f"local, chunks of {OTHER_CHUNK_TOKENS}, not {CHUNK_TOKENS}", runs.local, runs.other_chunks)
    yield compared("local, resumed after its first token", runs.resumed_expected, runs.resumed)
    title = f"offloaded from chunks of {CHUNK_TOKENS}, local {OTHER_CHUNK_TOKENS}, same kernels"
    yield compared(title, runs.mixed_expected, runs.mixed)


def rows_of_float32(runs: Runs, model: Path) -> Iterator[Row]:
    """Against float32. It has one token, so `equal_answers` says nothing there."""
    exact = first_tokens(model, runs.prompts)
    yield compared("local", exact, runs.local)
    yield compared("offloaded, as a client sends it", exact, runs.offloaded)
    yield compared(f"local, {NUM_AT_ONCE} at once", exact, runs.together)


def table(rows: Sequence[Row], answers: bool) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield (
        "| answer | "
        + ("equal answers | " if answers else "")
        + "equal first token | median | p90 | max | of 20: median | max |"
    )
    yield "|---|" + "---:|" * (7 if answers else 6)
    for row in rows:
        share = f"{row.equal_answers}/{row.num_prompts} | " if answers else ""
        gaps, widest = sorted(row.first_token_gaps), sorted(row.widest_gaps)
        figures = [statistics.median(gaps), gaps[int(0.9 * len(gaps))], gaps[-1], statistics.median(widest), widest[-1]]
        cells = " | ".join("0" if figure == 0 else f"{figure:.4f}" for figure in figures)
        yield f"| {row.title} | {share}{row.equal_first_tokens}/{row.num_prompts} | {cells} |"


def main() -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="qwen3-next")
    parser.add_argument("--prompts-per-length", type=int, default=6)
    parser.add_argument("--float32", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "prfaas-models")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    runs = collect(arguments.model, arguments.models, arguments.prompts_per_length)
    engines = list(rows_of_engines(runs))
    model = make_model(arguments.model, arguments.models)
    float32 = list(rows_of_float32(runs, model)) if arguments.float32 else []
    if arguments.json:
        found = {"local": [asdict(row) for row in engines], "float32": [asdict(row) for row in float32]}
        sys.stdout.write(json.dumps(found) + "\n")
        return
    lines = [f"{arguments.model}, {len(runs.prompts)} prompts, against the local answer:", *table(engines, True)]
    if float32:
        lines += ["", "against float32:", *table(float32, False)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
