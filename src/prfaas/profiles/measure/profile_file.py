"""The hardware profile that measurements make, as text. `prfaas.profiles.format` reads it back."""

from __future__ import annotations

import json

from prfaas.profiles.measure.fit import fit_quadratic
from prfaas.profiles.measure.measurement import Measured


def profile_text(measured: Measured, model: str, accelerator: str, gpus_per_instance: int, source: str) -> str:
    """YAML; strings are written as JSON, which YAML reads."""
    fit = fit_quadratic([(row.at, row.median_s) for row in measured.prefill])
    lines = [
        "# A hardware profile for the planner: docs/profiles.md. Medians; the fit is for information only.",
        "profile: 1",
        f"model: {json.dumps(model)}",
        f"accelerator: {json.dumps(accelerator)}",
        f"gpus_per_instance: {gpus_per_instance}",
        f"source: {json.dumps(source, ensure_ascii=False)}",
        "prefill:",
        "  table:",
        *(f"    - {{tokens: {row.at}, seconds: {row.median_s:.6g}}}" for row in measured.prefill),
        "decode:",
        *(f"  - {{batch: {row.at}, step_s: {row.median_s:.6g}}}" for row in measured.decode),
        "fit:",
        f"  quadratic: {{s: {fit.c0:.6g}, s_per_token: {fit.c1:.6g}, s_per_token2: {fit.c2:.6g}}}",
        f"  max_relative_error: {fit.max_relative_error:.3g}",
    ]
    return "\n".join(lines) + "\n"
