"""From `policy:` of a deployment file to what a gateway routes by.

Importing this module loads neither YAML nor the planning: only the kind `prfaas` needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prfaas.core.control.router import COOL_DOWN_S, RoutePolicy
from prfaas.core.errors import PrfaasError
from prfaas.deployment.model import Deployment, Emulation

if TYPE_CHECKING:
    from prfaas.core.model.serving_model import ServingModel
    from prfaas.deployment.document import Document


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """`offload` False: nothing leaves. Otherwise prompts with more uncached tokens than `threshold_tokens` do; with a
    `model` that is only where the threshold begins, and whose answer would begin later than `max_ttft_s` is refused.
    `why` is a sentence for the log."""

    offload: bool
    threshold_tokens: int
    why: str
    model: ServingModel | None = None
    max_ttft_s: float | None = None
    cool_down_s: float = COOL_DOWN_S

    def routes(self) -> RoutePolicy:
        """As the scheduler takes it."""
        return RoutePolicy(
            self.offload, self.threshold_tokens, self.model, self.max_ttft_s, cool_down_s=self.cool_down_s
        )


def routing_threshold(deployment: Deployment, path: Path | None) -> ServedPolicy:
    """What the gateway of a deployment routes by. `path` is its file, from which the kind `prfaas` finds profiles and
    traces; it searches for seconds where there are many clusters. Raises DeploymentError with a line for everything
    that such a search needs and the file lacks."""
    threshold = deployment.policy.routing_threshold_tokens
    match deployment.policy.kind:
        case "fixed":
            return ServedPolicy(True, threshold, f"policy fixed: over {threshold} uncached tokens")
        case "homogeneous":
            return ServedPolicy(False, threshold, "policy homogeneous: nothing is offloaded")
        case "naive":
            return ServedPolicy(True, 0, "policy naive: everything is offloaded")
        case "prfaas":
            return _planned(deployment, path)


def planning_problems(deployment: Deployment, document: Document) -> list[str]:
    """What the search of the kind `prfaas` needs and the file lacks, one line each; none for other kinds."""
    if deployment.policy.kind != "prfaas":
        return []
    from prfaas.deployment.document import DeploymentError
    from prfaas.scenario.build import scenario_of

    try:
        scenario_of(deployment, document)
    except DeploymentError as error:
        return str(error).splitlines()
    except PrfaasError as error:
        return [document.problem(("policy", "kind"), str(error))]
    return []


def _planned(deployment: Deployment, path: Path | None) -> ServedPolicy:
    from prfaas.core.planning.serving import served_threshold_tokens, serving_model
    from prfaas.core.planning.solve import solve
    from prfaas.deployment.document import DeploymentError, read_document
    from prfaas.scenario.build import scenario_of

    if path is None:
        raise DeploymentError("policy.kind: prfaas is planned from a file, and there is none; write kind: fixed")
    document = read_document(path)
    try:
        scenario = scenario_of(deployment, document)
        solution = solve(scenario)
    except DeploymentError:
        raise
    except PrfaasError as error:
        raise DeploymentError(document.problem(("policy", "kind"), str(error))) from None
    if not solution.system_rps > 0:
        text = "no request can be served by any threshold; check prefill_instances, duties and links"
        raise DeploymentError(document.problem(("policy", "kind"), text))
    threshold = served_threshold_tokens(solution)
    found = f"{solution.offload_fraction:.1%} of requests, {solution.system_rps:.3g} requests/s at most"
    why = f"policy prfaas: the threshold begins at {threshold} uncached tokens, as planned ({found}), and moves"
    scale, policy = deployment.emulation or Emulation(), deployment.policy
    model = serving_model(scenario, deployment.slo.tpot).scaled(scale.time_scale, scale.bytes_scale)
    max_ttft_s = None if policy.max_ttft is None else policy.max_ttft * scale.time_scale
    return ServedPolicy(True, threshold, why, model, max_ttft_s, policy.cool_down * scale.time_scale)
