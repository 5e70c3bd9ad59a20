"""What whoever serves or simulates a planned deployment takes over from the plan."""

from __future__ import annotations

from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.planning.scenario import PolicyKind, Scenario
from prfaas.core.planning.solution import Solution


def serving_model(scenario: Scenario, tpot_s: float | None) -> ServingModel:
    """By which a scheduler compares ways. `tpot_s`: see ServingModel."""
    clusters = {
        pd.name: ClusterModel(
            pd.prefill_s,
            None if pd.decode is None else pd.decode.batch,
            None if pd.decode is None else pd.decode.step_s,
        )
        for pd in scenario.pd
    }
    clusters |= {name: ClusterModel(prfaas.prefill_s) for name, prfaas in scenario.prfaas_by_name.items()}
    return ServingModel(clusters, scenario.kv_bytes, scenario.mean_output_tokens, tpot_s)


def served_threshold_tokens(solution: Solution) -> int:
    """Prompts with more uncached tokens leave."""
    return max(0, round(solution.threshold_tokens))


def moves_threshold(scenario: Scenario) -> bool:
    """Whether the threshold of the plan is only where it begins."""
    return scenario.policy is PolicyKind.PRFAAS
