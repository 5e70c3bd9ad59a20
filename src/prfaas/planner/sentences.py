"""A plan in plain sentences, and its numbers as people read them."""

from __future__ import annotations

from prfaas.core.planning.plan import Plan
from prfaas.core.planning.scenario import PolicyKind
from prfaas.core.planning.usage import FULL, GBPS, Stage

#: More names make a sentence that nobody reads.
_MAX_NAMES = 3

STAGE_NAMES = {
    Stage.PRFAAS: "PrfaaS prefill",
    Stage.LINK: "link",
    Stage.PD_PREFILL: "PD prefill",
    Stage.PD_DECODE: "PD decode",
}


def verdict(plan: Plan) -> str:
    """What to do and what it brings, in one sentence."""
    rate = f"{rps(plan.solution.system_rps)} requests/s"
    share = plan.solution.offload_fraction
    threshold = f"{plan.solution.threshold_tokens:,.0f}"
    policy = plan.scenario.policy
    if policy is PolicyKind.HOMOGENEOUS:
        return f"Nothing is offloaded: {rate}."
    if policy is PolicyKind.NAIVE:
        return f"Every prompt is prefilled remotely: {rate}."
    if not plan.offloads:
        chosen = "Best is to offload nothing" if policy is PolicyKind.PRFAAS else "The threshold offloads nothing"
        return f"{chosen}: {rate}. The PrfaaS clusters and links stay idle.{_thin_links(plan)}"
    if share > 1 - 1e-9:
        chosen = "Best is to offload everything" if policy is PolicyKind.PRFAAS else "The threshold offloads everything"
        return f"{chosen}: {rate}."
    return f"Offload prompts of more than {threshold} uncached tokens, {share:.1%} of the requests: {rate}."


def _thin_links(plan: Plan) -> str:
    """Why nothing is offloaded, if it is the network: Eq. 2 at the mean length against the links."""
    scenario = plan.scenario
    tokens_at = scenario.workload.mean_tokens
    for name, cluster in scenario.prfaas_by_name.items():
        busy = cluster.num_instances * scenario.kv_bytes.at(tokens_at) / cluster.prefill_s.at(tokens_at)
        carried = sum(link.bytes_per_s for link in scenario.links if link.source == name)
        if busy > carried:
            sends = f"a busy {name} would send {gbps(busy)} at the mean length, its links carry {gbps(carried)}"
            return f" The network is why: {sends}."
    return ""


def limit(plan: Plan) -> str:
    """What holds the system, in one sentence."""
    names = [STAGE_NAMES[stage] for stage in plan.bottlenecks]
    where = [u.name.replace(">", " → ") for u in plan.usages if u.stage is Stage.LINK and u.utilization >= FULL]
    if plan.bottlenecks == (Stage.PD_DECODE,):
        text = "Decode is the limit: prefill has time to spare, so more of it brings nothing"
    elif Stage.LINK in plan.bottlenecks:
        others = f", together with {_and(n for n in names if n != 'link')}" if len(names) > 1 else ""
        verb = "is" if len(where) == 1 else "are"
        shown = where if len(where) <= _MAX_NAMES else [*where[:_MAX_NAMES], f"{len(where) - _MAX_NAMES} more links"]
        text = f"The network is the limit: {_and(shown)} {verb} full{others}"
    elif set(plan.bottlenecks) == {Stage.PRFAAS, Stage.PD_PREFILL} and plan.scenario.policy is PolicyKind.PRFAAS:
        text = f"{_and(names)} are the limit together, as the best threshold makes them (Eq. 7)"
    elif len(names) > 1:
        text = f"{_and(names)} are the limit together"
    else:
        text = f"{names[0]} is the limit"
    return text[0].upper() + text[1:] + "."


def load(plan: Plan) -> str | None:
    """How the workload's arrivals compare with the limit; None if the file gives no rate."""
    arrival_rps = plan.scenario.arrival_rps
    if arrival_rps is None:
        return None
    share = arrival_rps / plan.solution.system_rps
    if share >= 1:
        return f"The workload's {arrival_rps:g} requests/s are {share:.0%} of that: queues would grow without end."
    return f"The workload's {arrival_rps:g} requests/s are {share:.0%} of that; TTFT below has no queueing in it."


def tokens(value: float | None) -> str:
    """19,421."""
    return "–" if value is None else f"{value:,.0f}"


def rps(value: float | None) -> str:
    """3.25; 18,033."""
    if value is None:
        return "–"
    return f"{value:.3g}" if value < 1 else f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def gbps(bytes_per_s: float | None) -> str:
    """12.4 Gbps."""
    if bytes_per_s is None:
        return "–"
    rate = bytes_per_s / GBPS
    return f"{rate:.3g} Gbps" if rate >= 0.1 or not rate else f"{rate * 1e3:.3g} Mbps"


def share(value: float | None) -> str:
    """49.5%."""
    return "–" if value is None else f"{value:.1%}"


def seconds(value: float) -> str:
    """2.23 s."""
    return f"{value:.2f} s"


def money(value: float, currency: str) -> str:
    """0.384 USD."""
    return f"{value:,.4g} {currency}"


def _and(parts: object) -> str:
    names = list(parts)  # type: ignore[call-overload]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
