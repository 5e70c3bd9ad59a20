"""`python -m benchmarks.scheduler.conditions`: the case study under load, when things change, and without parts.

Prints the tables of docs/benchmarks/scheduler.md and draws its pictures into docs/images. All of it is simulated and
follows from the seeds alone, whatever the machine.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import matplotlib

from benchmarks.scheduler.in_parallel import run_all
from prfaas.core.control import dispatch, placer
from prfaas.core.control.link_rates import LinkRates
from prfaas.core.control.route import Option
from prfaas.core.control.view import view
from prfaas.drawing import described_svg
from prfaas.sim.policies import POLICIES
from prfaas.sim.runs import Run
from prfaas.testing.scheduling import STATIC, STORIES, Choice, Outcome, Story, deployment, planned, steady

IMAGES: Final = Path(__file__).parents[2] / "docs" / "images"
LOADS: Final = (0.6, 0.8, 0.95)
#: Long enough for queues at 0.95 to become as long as they will.
LOAD_RUN_S: Final = 3_000.0

#: With less than everything queues become long, and runs slow.
FEW: Final = ("steady at 0.9", "link to 2 Gbps", "five times as many for 30 s", "PrfaaS cluster lost and back")

Cell = tuple[str, int, Choice]


def story_of(name: str) -> Story:
    """One of STORIES, or `load policy`: so much of what the plan of a file promises."""
    if name in STORIES:
        return STORIES[name]
    load, file = name.split()
    share = float(load) * planned(file)[1].system_rps / planned()[1].system_rps
    return steady(share, LOAD_RUN_S)


def simulated(cell: Cell) -> Outcome:
    name, seed, choice = cell
    return story_of(name).outcome(seed, choice)


class Table:
    """Medians over seeds."""

    def __init__(self, done: dict[Cell, Outcome], seeds: range) -> None:
        self._done, self._seeds = done, seeds

    def median(self, name: str, choice: Choice, value: Callable[[Outcome], float]) -> float:
        return statistics.median(value(self._done[name, seed, choice]) for seed in self._seeds)

    def best_static(self, name: str) -> int:
        """The threshold with the least median p99 among those with the best goodput, within 0.3%."""
        goodput = {t: self.median(name, t, lambda o: o.goodput) for t in STATIC}
        good = [t for t in STATIC if goodput[t] >= max(goodput.values()) - 0.003]
        return min(good, key=lambda t: self.median(name, t, lambda o: o.ttft_s_p99))


FIGURES: Final[tuple[tuple[str, Callable[[Outcome], float], str], ...]] = (
    ("TTFT mean", lambda o: o.ttft_s_mean, ".2f"), ("p50", lambda o: o.ttft_s_p50, ".2f"),
    ("p90", lambda o: o.ttft_s_p90, ".2f"), ("p99", lambda o: o.ttft_s_p99, ".2f"),
    ("e2e mean", lambda o: o.e2e_s_mean, ".1f"), ("e2e p99", lambda o: o.e2e_s_p99, ".1f"),
    ("goodput", lambda o: o.goodput, ".3f"), ("offloaded", lambda o: o.offload_fraction, ".0%"),
)  # fmt: skip


def under_load(seeds: range, processes: int) -> None:
    """Each policy at the same share of its own Λ_max, and ours at that of the others."""
    names = [f"{load} {file}" for load in LOADS for file in ("prfaas", "naive", "homogeneous")]
    cells: list[Cell] = []
    for name in names:
        file = name.split()[1]
        choices: tuple[Choice, ...] = ("prfaas", *STATIC) if file == "prfaas" else (file, "prfaas")
        cells += [(name, seed, choice) for choice in choices for seed in seeds]
    done = run_all(simulated, cells, processes)
    table = Table(done, seeds)
    print("\n| load | policy | " + " | ".join(label for label, _, _ in FIGURES) + " |")
    print("|---|---|" + "---|" * len(FIGURES))
    for name in names:
        load, file = name.split()
        rate = float(load) * planned(file)[1].system_rps
        rows: list[tuple[str, Choice]]
        if file == "prfaas":
            best = table.best_static(name)
            rows = [("prfaas", "prfaas"), (f"best threshold, {best:,}", best), ("planned threshold, 19,400", 19_400)]
        else:
            rows = [(file, file), ("prfaas", "prfaas")]
        for label, choice in rows:
            cells_of = (f"{table.median(name, choice, value):{form}}" for _, value, form in FIGURES)
            print(f"| {load} of {file}: {rate:.2f}/s | {label} | " + " | ".join(cells_of) + " |")
    draw_load(table)


def when_things_change(seeds: range, processes: int) -> None:
    """Against the best threshold that stands still, and against others."""
    cells = [(name, seed, choice) for name in STORIES for choice in ("prfaas", *STATIC) for seed in seeds]
    done = run_all(simulated, cells, processes)
    table = Table(done, seeds)
    columns = ("what happens", "ours: mean, p99", "goodput", "best threshold", "its mean, p99", "goodput", "p99 ratio",
               "goodput ratio")  # fmt: skip
    print(f"\n| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|")
    for name in STORIES:
        best = table.best_static(name)

        def figures(choice: Choice, name: str = name) -> tuple[float, float, float]:
            kinds = (lambda o: o.ttft_s_mean, lambda o: o.ttft_s_p99, lambda o: o.goodput)
            mean, p99, goodput = (table.median(name, choice, kind) for kind in kinds)
            return mean, p99, goodput

        ours, theirs = figures("prfaas"), figures(best)
        print(
            f"| {name} | {ours[0]:.2f}, {ours[1]:.1f} | {ours[2]:.3f} | {best:,} | {theirs[0]:.2f}, {theirs[1]:.1f} |"
            f" {theirs[2]:.3f} | {ours[1] / theirs[1]:.2f} | {ours[2] / theirs[2]:.3f} |"
        )


def beside_others(seeds: range, processes: int) -> None:
    """p99 of the time to the first token, and goodput, of every policy."""
    choices: tuple[Choice, ...] = ("prfaas", 19_400, 16_384, *POLICIES)
    cells = [(name, seed, choice) for name in FEW for choice in choices for seed in seeds]
    done = run_all(simulated, cells, processes)
    table = Table(done, seeds)
    print("\n| policy | " + " | ".join(FEW) + " |\n|---|" + "---|" * len(FEW))
    for choice in choices:
        label = f"threshold {choice:,}" if isinstance(choice, int) else choice
        p99s = [table.median(name, choice, lambda o: o.ttft_s_p99) for name in FEW]
        goodputs = [table.median(name, choice, lambda o: o.goodput) for name in FEW]
        cells = (f"{p99:.1f} ({goodput:.2f})" for p99, goodput in zip(p99s, goodputs, strict=True))
        print(f"| {label} | " + " | ".join(cells) + " |")


#: What is taken away, and how.
PARTS: Final[dict[str, tuple[Any, str, Any]]] = {
    "no sense of the link": (LinkRates, "saw", lambda self, pair, seen, now_s: False),
    "no late binding": (dispatch.Dispatch, "_room_s", lambda self, cluster: math.inf),
    "nothing that waits moves": (dispatch.Dispatch, "_is_better", lambda *facts: False),
    "no price for the waiting of others": (placer, "delay_to_others_s", lambda *facts: 0.0),
}  # fmt: skip


@contextmanager
def without(part: str | None) -> Iterator[None]:
    if part is None:
        yield
        return
    owner, name, instead = PARTS[part]
    before = getattr(owner, name)
    setattr(owner, name, instead)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _ablated(cell: tuple[str, int, str | None]) -> Outcome:
    name, seed, part = cell
    with without(part):
        return story_of(name).outcome(seed)


def ablations(seeds: range, processes: int) -> None:
    """Mean time to the first token without one part each."""
    parts: tuple[str | None, ...] = (None, *PARTS)
    cells = [(name, seed, part) for name in FEW for part in parts for seed in seeds]
    done = run_all(_ablated, cells, processes)
    print("\n| what happens | with all | " + " | ".join(PARTS) + " |\n|---|---|" + "---|" * len(PARTS))
    for name in FEW:
        means = [statistics.median(done[name, seed, part].ttft_s_mean for seed in seeds) for part in parts]
        cells_of = (f"{mean:.2f} ({mean / means[0]:.2f})" for mean in means[1:])
        print(f"| {name} | {means[0]:.2f} | " + " | ".join(cells_of) + " |")


# Pictures


def save(figure: Any, name: str, title: str, about: str) -> None:
    """As SVG that says in words what it shows, and that is the same each time."""
    matplotlib.rcParams["svg.hashsalt"] = name
    svg = described_svg(figure, title, about)
    (IMAGES / f"{name}.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


def draw_load(table: Table) -> None:
    """Time to the first token over load, of what comes a second."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    lines: tuple[tuple[str, str, Choice], ...] = (
        ("prfaas", "prfaas", "prfaas"), ("planned threshold", "prfaas", 19_400), ("naive", "naive", "naive"),
        ("homogeneous", "homogeneous", "homogeneous"),
    )  # fmt: skip
    for label, file, choice in lines:
        rates = [load * planned(file)[1].system_rps for load in LOADS]
        for axes, value in ((left, lambda o: o.ttft_s_mean), (right, lambda o: o.ttft_s_p99)):
            axes.plot(rates, [table.median(f"{load} {file}", choice, value) for load in LOADS], marker="o", label=label)
    for axes, title in ((left, "mean"), (right, "p99")):
        axes.set(xlabel="requests/s", ylabel=f"time to first token, {title}, s", yscale="log")
        axes.grid(visible=True, alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    save(
        figure, "scheduler-load", "Time to the first token over load", "Mean and p99 of four policies, over requests/s."
    )


def draw_link(seed: int = 1) -> None:
    """A link that falls to 2 Gbps and comes back: threshold, queues, rate."""
    from matplotlib.figure import Figure

    story = STORIES["link to 2 Gbps"]
    run = Run(deployment())
    kernel, scheduler = run.simulation.kernel, run.simulation.scheduler
    run.expect(story.conditions)
    run.simulation.follow(story.arrivals(seed))
    seen = []
    for second in range(3, 900, 3):
        kernel.run(float(second))
        seen.append((second, view(scheduler, float(second))))
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    times = [second for second, _ in seen]
    now = [v.clusters["prfaas-west"].threshold_tokens for _, v in seen]
    top.scatter(
        times,
        [n if n is not None else 131_072 for n in now],
        s=2,
        color="tab:gray",
        label="now: queues and link as they are",
    )
    top.plot(times, [v.threshold_tokens for _, v in seen], color="tab:blue", label="solved: Eq. 7")
    top.set(ylabel="threshold, tokens", yscale="log")
    for name, color in (("prfaas-west", "tab:orange"), ("pd-east", "tab:green")):
        middle.plot(times, [v.clusters[name].num_waiting for _, v in seen], color=color, label=name)
    middle.set(ylabel="prompts that wait")
    bottom.plot(times, [(v.links[0].bytes_per_s or 0) * 8e-9 for _, v in seen], color="tab:red", label="expected")
    bottom.step([0, 302, 602, 900], [100, 2, 100, 100], where="post", color="black", linewidth=0.8, label="real")
    bottom.set(ylabel="link, Gbps", xlabel="seconds", yscale="log")
    for axes in (top, middle, bottom):
        # Above its panel, where it hides nothing.
        axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=2, frameon=False)
    whole, thin = (
        rounded(statistics.median(v.threshold_tokens for second, v in seen if first <= second < last))
        for first, last in ((0, 300), (400, 600))
    )
    waited = [v.clusters["pd-east"].num_waiting for second, v in seen if 597 <= second <= 615]
    save(
        figure, "scheduler-link", "A link that falls to 2 Gbps and is back",
        "Threshold, prompts that wait, and the rate of the link that is expected, over 900 seconds. The solved"
        f" threshold goes from {whole:,} to {thin:,} tokens and back; at 600 s prompts that wait in the east go from"
        f" {max(waited)} to {min(waited)}.",
    )  # fmt: skip


def draw_cost() -> None:
    """Cost over length, while an instance of the PD cluster has nothing to do: where all of the PrfaaS cluster are busy
    and nobody waits for one, and where three prompts do."""
    from matplotlib.figure import Figure

    run = Run(deployment())
    kernel, scheduler = run.simulation.kernel, run.simulation.scheduler
    run.simulation.follow(steady(0.8, 900.0).arrivals(2))
    assert scheduler.dispatch is not None
    lengths = [round(2.0 ** (step / 8)) for step in range(56, 137)]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    about = []
    for axes, num_wait, title in zip(
        figure.subplots(1, 2, sharey=True),
        (0, 3),
        ("the west is busy, nothing waits", "three prompts wait in the west"),
        strict=True,
    ):
        second = round(kernel.now_s) + 100
        while not _is_moment(scheduler.dispatch, num_wait, float(second)):
            second += 1
            kernel.run(float(second))
        for name, color in (("prfaas-west", "tab:orange"), ("pd-east", "tab:green")):
            ways = [_way(scheduler.dispatch, name, n, float(second)) for n in lengths]
            axes.plot(lengths, [way.cost_s for way in ways], color=color, label=f"{name}: cost")
            axes.plot(lengths, [way.finish_s for way in ways], color=color, linestyle=":",
                      label=f"{name}: until it can begin")  # fmt: skip
        costs, finishes = (_crossing(scheduler.dispatch, float(second), of) for of in ("cost_s", "finish_s"))
        told = f"from {costs:,} tokens on the west costs less"
        first = _way(scheduler.dispatch, "prfaas-west", lengths[0], float(second))
        about.append(
            f"{title.capitalize()} (the first turn is in {first.wait_s:.1f} s): {told}, and from {finishes:,} on the"
            " answer begins sooner."
        )
        axes.axvline(costs, color="tab:gray", linewidth=0.8)
        axes.text(costs, 0.03, f" {costs:,}", transform=axes.get_xaxis_transform(), fontsize=8, color="tab:gray")
        axes.set(xlabel="uncached tokens", xscale="log", yscale="log", title=title)
        axes.grid(visible=True, alpha=0.3)
    figure.axes[0].set(ylabel="seconds")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    save(figure, "scheduler-cost", "What a prompt costs in two clusters", " ".join(about))


def _way(asked: dispatch.Dispatch, cluster: str, num_tokens: int, now_s: float) -> Option:
    return next(o for o in asked.options_of(num_tokens, now_s) if o.prefill_cluster == cluster)


def _is_moment(asked: dispatch.Dispatch, num_wait: int, now_s: float) -> bool:
    """So many wait in the west, whose instances are all busy; in the east one has nothing to do."""
    queues = {name: len(asked.queues.get(name, ())) for name in ("prfaas-west", "pd-east")}
    waits_s = {name: _way(asked, name, 128, now_s).wait_s for name in queues}
    return queues == {"prfaas-west": num_wait, "pd-east": 0} and waits_s["prfaas-west"] > 0.5 and not waits_s["pd-east"]


def _crossing(asked: dispatch.Dispatch, now_s: float, of: str) -> int:
    """The shortest prompt for which the west has less of this."""
    low, high = 128, 131_072
    while low < high:
        middle = (low + high) // 2
        west, east = (getattr(_way(asked, name, middle, now_s), of) for name in ("prfaas-west", "pd-east"))
        low, high = (low, middle) if west < east else (middle + 1, high)
    return rounded(low)


def rounded(number: float) -> int:
    """To two digits, as people say it."""
    digits = 1 - math.floor(math.log10(number))
    return round(round(number, digits))


def draw_both() -> None:
    """Those that need one run each."""
    draw_link()
    draw_cost()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=["load", "changes", "others", "ablations", "pictures"])
    options = parser.parse_args()
    seeds = range(1, options.seeds + 1)
    parts: dict[str, Callable[[], None]] = {
        "load": functools.partial(under_load, seeds, options.processes),
        "changes": functools.partial(when_things_change, seeds, options.processes),
        "others": functools.partial(beside_others, seeds, options.processes),
        "ablations": functools.partial(ablations, seeds, options.processes),
        "pictures": draw_both,
    }
    for name, part in parts.items():
        if options.only in (None, name):
            print(f"\n## {name}", flush=True)
            part()


if __name__ == "__main__":
    main()
