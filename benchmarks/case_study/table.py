"""`make case-study`: the paper's case study in four columns: paper, plan, simulation, and a system of real processes.

Plan and simulation are what `prfaas plan` and `prfaas simulate` say of the files that the system runs: twelve emulated
engines of eight GPUs each, their KV nodes, the link between the clusters, and the gateway, under `prfaas bench e2e`.
The three deployments run side by side, first saturated, then at a share of what each is planned to serve.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.case_study.measured import in_profile_time, loaded, saturated
from benchmarks.case_study.page import IMAGE, PAGE, picture, table_of, with_block
from benchmarks.case_study.served import POLICIES, Served, file_in, lines_of, prfaas_json
from prfaas.demo.case_study import BYTES_SCALE, PD

LOAD: Final = 0.8
#: Share of the requests at `LOAD` that are sent first and not counted.
WARM_UP: Final = 0.1
SIMULATED_REQUESTS: Final = 6_000
LOOK_EVERY_S: Final = 1.0


@dataclass(frozen=True)
class Lengths:
    """Seconds are the profiles'. `warm_s`: until batches and queues are full, and what began together has spread.
    `window_s`: measured, in each of the two phases. `num_clients` of the closed loop: about twice as many as are served
    at a time, so that something always waits."""

    time_scale: float
    warm_s: float
    window_s: float
    num_clients: int
    seed: int

    def num_saturating(self, rps: float) -> int:
        return round(rps * (self.warm_s + self.window_s)) + self.num_clients

    def num_loading(self, rps: float) -> int:
        return round(LOAD * rps * self.window_s / (1 - WARM_UP))


def main() -> None:
    options = _options()
    lengths = Lengths(options.time_scale, 60.0 * options.warm_up, 60.0 * options.minutes, options.clients, options.seed)
    policies = tuple(options.policy or POLICIES)
    folder = Path(options.folder or tempfile.mkdtemp(prefix="prfaas-case-study-"))
    began_s = time.monotonic()
    with ExitStack() as stack:
        _say(f"starts {', '.join(policies)}: files and requests are in {folder}")
        served = [stack.enter_context(Served(policy, folder / policy, lengths.time_scale)) for policy in policies]
        _say("all is up")
        figures = {one.policy: {"plan": _planned(one)} for one in served}
        _side_by_side(served, "saturated", lambda one: _saturate(one, figures[one.policy], lengths))
        _side_by_side(served, f"at {LOAD:g} of the plan", lambda one: _load(one, figures[one.policy], lengths))
        for one in served:
            figures[one.policy]["system"]["num_wrong"] = one.num_wrong()
    for policy in policies:
        _say(f"simulates {policy}")
        figures[policy]["simulation"] = _simulated(file_in(folder / policy), figures[policy], lengths)
    found = {
        "time_scale": lengths.time_scale, "window_s": lengths.window_s, "seed": lengths.seed, "load": LOAD,
        "python": platform.python_version(), "wall_s": time.monotonic() - began_s, "policies": figures,
    }  # fmt: skip
    (folder / "figures.json").write_text(json.dumps(found, indent=2))
    block = table_of(found)
    print(block)
    if options.write:
        PAGE.write_text(with_block(PAGE.read_text(), block))
        IMAGE.write_text(picture(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.case_study.table", description=__doc__)
    parser.add_argument("--time-scale", type=float, default=1.0, help="seconds here for one of the profiles")
    parser.add_argument("--minutes", type=float, default=6.0, help="of the profiles' time that each phase is measured")
    parser.add_argument("--warm-up", type=float, default=2.0, help="minutes before them, while saturated")
    parser.add_argument("--clients", type=int, default=200, help="that saturate a deployment")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="only this one; repeated")
    parser.add_argument("--seed", type=int, default=7, help="of lengths and times")
    parser.add_argument("--folder", help="for files and requests; default: a new one")
    parser.add_argument("--write", action="store_true", help="the table into its page, and the picture")
    return parser.parse_args()


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _side_by_side(served: list[Served], what: str, run: Any) -> None:
    _say(what)
    with ThreadPoolExecutor(len(served)) as pool:
        for _ in pool.map(run, served):
            pass


def _planned(one: Served) -> dict[str, Any]:
    plan = prfaas_json("plan", str(one.file), "--json")
    plan["system_rps_expected"] = prfaas_json("plan", str(one.file), "--expected", "--json")["system_rps"]
    return plan


class _Watch:
    """Looks at a deployment while a load runs. Times since it began, of the clock."""

    def __init__(self, one: Served) -> None:
        self._one = one
        self._over = threading.Event()
        self._began_s = time.monotonic()
        self._thread = threading.Thread(target=self._run)
        #: Time, bytes over the link, threshold or None.
        self.seen: list[tuple[float, int, float | None]] = []
        self._cpu_s = one.cpu_s()

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.wall_s = time.monotonic() - self._began_s
        self.cores = (self._one.cpu_s() - self._cpu_s) / self.wall_s

    def _run(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            at_s = time.monotonic() - self._began_s
            with suppress(OSError):  # a busy machine; the next look comes soon
                self.seen.append((at_s, self._one.carried_bytes(), self._one.scheduler().get("threshold_tokens")))

    def within(self, from_s: float, to_s: float) -> tuple[float, float | None]:
        """Bytes over the link a second, and the middle one of the thresholds. Raises ValueError without two looks."""
        some = [seen for seen in self.seen if from_s <= seen[0] <= to_s]
        if len(some) < 2:
            raise ValueError(f"{self._one.policy}: nobody could look between {from_s:.0f} and {to_s:.0f} s; run longer")
        (first_s, first, _), (last_s, last, _) = some[0], some[-1]
        thresholds = sorted(threshold for _, _, threshold in some if threshold is not None)
        return (last - first) / (last_s - first_s), thresholds[len(thresholds) // 2] if thresholds else None


def _bench(one: Served, name: str, *arguments: str) -> list[dict[str, Any]]:
    """Its requests, in the profiles' time."""
    file = one.folder / f"{name}.jsonl"
    common = ("--deployment", str(one.file), "--requests", str(file), "--timeout", "1200s", "--json")
    told = prfaas_json("bench", "e2e", one.gateway, *common, *arguments)
    file.with_suffix(".json").write_text(json.dumps(told, indent=2))
    return lines_of(file)


def _outcomes(lines: list[dict[str, Any]]) -> dict[str, int]:
    kinds = [line["outcome"] for line in lines]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _saturate(one: Served, figures: dict[str, Any], lengths: Lengths) -> None:
    number = lengths.num_saturating(figures["plan"]["system_rps"])
    scale = lengths.time_scale
    with _Watch(one) as watch:
        lines = in_profile_time(
            _bench(one, "saturated", "--arrivals", f"clients {lengths.num_clients}", "--num-requests", str(number),
                   "--seed", str(lengths.seed)), scale,
        )  # fmt: skip
    found = saturated(lines, lengths.warm_s)
    carried, threshold = watch.within(found.window_s[0] * scale, found.window_s[1] * scale)
    figures["system"] = {
        "saturated": asdict(found), "outcomes": _outcomes(lines), "threshold_tokens": threshold,
        "egress_bytes_per_s": carried / BYTES_SCALE * scale, "duties": _duties(one), "cores": watch.cores,
    }  # fmt: skip
    _say(f"{one.policy}: {found.rps:.3f} requests/s saturated, {watch.cores:.2f} cores")


def _load(one: Served, figures: dict[str, Any], lengths: Lengths) -> None:
    rps = figures["plan"]["system_rps"]
    arguments = ("--rate", f"{LOAD * rps:.6f}", "--num-requests", str(lengths.num_loading(rps)))
    with _Watch(one) as watch:
        lines = in_profile_time(_bench(one, "loaded", *arguments, "--seed", str(lengths.seed)), lengths.time_scale)
    found = loaded(lines, WARM_UP)
    figures["system"]["loaded"] = asdict(found) | {"outcomes": _outcomes(lines), "cores": watch.cores}
    times = f"first token after {found.ttft_s_mean:.2f} s, P90 {found.ttft_s_p90:.2f} s"
    _say(f"{one.policy}: {times}, {watch.cores:.2f} cores")


def _duties(one: Served) -> list[int]:
    """Instances of the PD cluster that prefill, and that decode, as they are now."""
    members = one.members().values()
    duties = [member["duty"] for member in members if member["cluster"] == PD]
    return [duties.count("prefill"), duties.count("decode")]


def _simulated(file: Path, figures: dict[str, Any], lengths: Lengths) -> dict[str, Any]:
    rps = figures["plan"]["system_rps"]
    requests = file.with_name("simulated.jsonl")
    common = ("simulate", str(file), "--json", "--first-seed", str(lengths.seed), "--requests", str(requests))
    full = prfaas_json(
        *common, "--arrivals", f"clients {lengths.num_clients}", "--num-requests", str(SIMULATED_REQUESTS)
    )["runs"][0]
    at_most = saturated(lines_of(requests), lengths.warm_s)
    prfaas_json(*common, "--rate", f"{LOAD * rps:.6f}", "--num-requests", str(lengths.num_loading(rps)))
    return {
        "saturated": asdict(at_most), "threshold_tokens": full["routing_threshold_tokens_final"],
        "egress_bytes_per_s": full["egress_bytes_per_s_mean"],
        "duties": [full["num_pd_prefill_final"], full["num_pd_decode_final"]],
        "loaded": asdict(loaded(lines_of(requests), WARM_UP)),
    }  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; every process is stopped") from None
