"""A deployment file becomes a scenario, or every mistake is told with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prfaas.core.planning.scenario import PolicyKind, Scenario
from prfaas.deployment.document import DeploymentError
from prfaas.scenario.build import build_scenario

GOOD = """\
model: {profile: internal-1t-hybrid}
clusters:
  east: {role: pd, accelerator: h20, instances: 8}
  west: {role: prfaas, accelerator: h200, instances: 4}
links:
  - {from: west, to: east, bandwidth: 100Gbps}
workload:
  input_tokens: {lognormal: {mu: 9.9, sigma: 1.0, min: 128, max: 131072}}
  output_tokens: 1024
slo: {tpot: 25ms}
policy: {kind: prfaas}
"""

TRACE = '{"timestamp": 0, "input_length": 1200, "output_length": 10, "hash_ids": [1, 2, 3]}\n' * 2


def build(folder: Path, text: str) -> Scenario:
    file = folder / "d.yaml"
    file.write_text(text, encoding="utf-8")
    return build_scenario(file)


def test_reads_a_whole_file(tmp_path: Path) -> None:
    """In SI, with the profiles' own figures."""
    scenario = build(tmp_path, GOOD)
    assert scenario.policy is PolicyKind.PRFAAS
    assert scenario.links[0].bytes_per_s == 12.5e9
    assert scenario.pd[0].decode_rps == pytest.approx(20 / (0.025 * 1024))
    assert scenario.pd[0].gpus_per_instance == 8
    assert scenario.kv_bytes.at(1000) == pytest.approx(190.8 * 2**20, rel=1e-6)
    assert any("Table 5" in note for note in scenario.notes)


def test_the_outputs_mean_comes_from_a_trace(tmp_path: Path) -> None:
    """And its uncached lengths: the second request's prompt is the first's."""
    (tmp_path / "t.jsonl").write_text(TRACE)
    text = GOOD.replace("{lognormal: {mu: 9.9, sigma: 1.0, min: 128, max: 131072}}", "{trace: {file: t.jsonl}}")
    scenario = build(tmp_path, text.replace("  output_tokens: 1024\n", ""))
    assert scenario.mean_output_tokens == 10
    assert scenario.workload.mean_tokens == (1200 + 1) / 2


def test_a_config_of_a_model_will_do(tmp_path: Path) -> None:
    """KV sizes from config.json, times from a measured profile."""
    config = {"model_type": "llama", "torch_dtype": "bfloat16", "num_hidden_layers": 2, "num_attention_heads": 8,
              "num_key_value_heads": 2, "hidden_size": 512}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "hw.yaml").write_text(
        "profile: 1\nmodel: llama\naccelerator: a\ngpus_per_instance: 1\nsource: here\n"
        "prefill: {table: [{tokens: 100, seconds: 0.1}, {tokens: 1000, seconds: 0.9}]}\n"
        "decode: [{batch: 1, step_s: 0.01}, {batch: 8, step_s: 0.02}]\n"
    )
    text = GOOD.replace("profile: internal-1t-hybrid", "hf_config: config.json")
    text = text.replace("accelerator: h200", "profile: hw.yaml").replace("accelerator: h20", "profile: hw.yaml")
    scenario = build(tmp_path, text)
    assert scenario.kv_bytes.at(10) == 10 * 2 * 2 * 2 * 64 * 2
    assert scenario.pd[0].decode_rps == pytest.approx(8 / (0.02 * 1024))
    assert any("prolonged" in note for note in scenario.notes)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{profile: internal-1t-hybrid}", "{profile: internal-1t}", "d.yaml:1: model.profile: 'internal-1t' is neither a file nor a shipped profile; did you mean 'internal-1t-hybrid'?"),
        ("{profile: internal-1t-hybrid}", "{}", "d.yaml:1: model: planning needs the KVCache's size"),
        ("{profile: internal-1t-hybrid}", "{profile: a, hf_config: b}", "d.yaml:1: model.hf_config: profile already says"),
        ("{profile: internal-1t-hybrid}", "{hf_config: none.json}", "d.yaml:1: model.hf_config: "),
        ("accelerator: h20,", "accelerator: h2O,", "d.yaml:3: clusters.east.accelerator: "),
        ("accelerator: h20,", "accelerator: a100,", "d.yaml:3: clusters.east.accelerator: there is no hardware profile of internal-1t-hybrid on 'a100'"),
        ("accelerator: h20, ", "", "d.yaml:3: clusters.east: planning needs the hardware"),
        ("accelerator: h20,", "accelerator: h200,", "d.yaml:3: clusters.east.decode: the profile of h200 has no decode times"),
        ("accelerator: h20,", "profile: none.yaml,", "d.yaml:3: clusters.east.profile: "),
        ("instances: 8", "instances: 0", "d.yaml:3: clusters.east.instances: Input should be greater than or equal to 1 (got 0)"),
        (", instances: 8", "", "d.yaml:3: clusters.east: give endpoints (to serve it) or instances (to plan it)"),
        ("instances: 8", "instances: 8, prefill_instances: 8", "d.yaml:3: clusters.east.prefill_instances: 8 of 8 leave none to decode"),
        ("instances: 4", "instances: 4, decode: {max_batch: 1, step: 1ms}", "d.yaml:4: clusters.west.decode: a cluster with role prfaas only prefills"),
        ("instances: 8", "instances: 8, gpus_per_instance: 4", "d.yaml:3: clusters.east.gpus_per_instance: the profile was measured with 8"),
        ("bandwidth: 100Gbps", "bandwidth: -5Gbps", "d.yaml:6: links.0.bandwidth: '-5Gbps' is not a bandwidth"),
        ("bandwidth: 100Gbps", "bandwidth: 0Gbps", "d.yaml:6: links.0.bandwidth: Input should be greater than 0"),
        (", bandwidth: 100Gbps", "", "d.yaml:6: links.0.bandwidth: missing; planning needs it"),
        ("links:\n  - {from: west, to: east, bandwidth: 100Gbps}\n", "", "links: missing; add one from a PrfaaS cluster"),
        ("min: 128, max: 131072", "min: 200, max: 100", "workload.input_tokens.lognormal: min must be at least 1 and under max, got min 200, max 100"),
        ("sigma: 1.0", "sigma: 0", "d.yaml:8: workload.input_tokens.lognormal.sigma: Input should be greater than 0"),
        ("mu: 9.9", "mu: -12", "practically no length of a log-normal with mu -12"),
        ("{lognormal: {", "{constant: 5, lognormal: {", "d.yaml:8: workload.input_tokens: give exactly one of lognormal, constant, trace"),
        ("{lognormal: {mu: 9.9, sigma: 1.0, min: 128, max: 131072}}", "{constant: 0}", "d.yaml:8: workload.input_tokens.constant: "),
        ("{lognormal: {mu: 9.9, sigma: 1.0, min: 128, max: 131072}}", "{trace: {file: none.jsonl}}", "d.yaml:8: workload.input_tokens.trace: none.jsonl: No such file"),
        ("  output_tokens: 1024\n", "", "workload.output_tokens: missing; add the mean number"),
        ("output_tokens: 1024", "output_tokens: 0", "d.yaml:9: workload.output_tokens: Input should be greater than 0"),
        ("{tpot: 25ms}", "{tpot: 1ms}", "d.yaml:10: slo.tpot: east: a step of 20 sequences takes 25 ms, longer than slo.tpot of 1 ms"),
        ("{kind: prfaas}", "{kind: prfaas, routing_threshold_tokens: 5}", "d.yaml:11: policy.routing_threshold_tokens: kind prfaas finds the threshold itself"),
        ("{kind: prfaas}", "{kind: best}", "d.yaml:11: policy.kind: "),
        ("policy: {kind: prfaas}\n", "prices: {per_gpu_hour: {h20: 1}}\n", "d.yaml:11: prices.per_gpu_hour: no price for the GPUs of west (h200)"),
        ("policy: {kind: prfaas}\n", "prices: {per_egress_gb: 1}\n", "d.yaml:11: prices: no GPU has a price"),
        ("policy: {kind: prfaas}\n", "prices: {per_egress_gb: -1}\n", "d.yaml:11: prices.per_egress_gb: "),
    ],
)  # fmt: skip
def test_each_mistake_has_its_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    """One change to a good file at a time."""
    assert old in GOOD
    with pytest.raises(DeploymentError) as error:
        build(tmp_path, GOOD.replace(old, new, 1))
    assert expected in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/d.yaml:")


@pytest.mark.parametrize(
    ("line", "expected"),
    [("", "line 2: empty"), ("{", "line 2: not JSON"), ('{"timestamp": 1}', "line 2: input_length is missing")],
)
def test_a_bad_trace_line_is_named_by_its_number(tmp_path: Path, line: str, expected: str) -> None:
    """In the trace, and the field in the deployment file."""
    (tmp_path / "t.jsonl").write_text(TRACE.splitlines()[0] + "\n" + line + "\n" + TRACE)
    text = GOOD.replace("{lognormal: {mu: 9.9, sigma: 1.0, min: 128, max: 131072}}", "{trace: {file: t.jsonl}}")
    with pytest.raises(DeploymentError) as error:
        build(tmp_path, text)
    assert f"workload.input_tokens.trace: t.jsonl: {expected}" in str(error.value)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    """Two clusters without hardware and a link without bandwidth: three lines."""
    text = GOOD.replace("accelerator: h20, ", "").replace("accelerator: h200, ", "").replace(", bandwidth: 100Gbps", "")
    with pytest.raises(DeploymentError) as error:
        build(tmp_path, text)
    assert len(str(error.value).splitlines()) == 3


def served(*duties: str) -> str:
    """The good file with endpoints of these duties in its PD cluster."""
    endpoints = ", ".join(
        f"{{engine: 'http://h{n}:1', kvnode: 'http://h{n}:2', lanes: 'h{n}:3', duty: {duty}}}"
        for n, duty in enumerate(duties)
    )
    return GOOD.replace("instances: 8", f"endpoints: [{endpoints}]")


def test_the_duties_of_instances_fix_the_split(tmp_path: Path) -> None:
    """A plan for a deployment that runs is one for its duties; with instances of both, the split is searched."""

    def num_prefill(*duties: str) -> int | None:
        return build(tmp_path, served(*duties)).pd[0].num_prefill

    assert num_prefill("prefill", "decode", "decode") == 1
    assert num_prefill("prefill", "decode", "both") is None
    assert num_prefill("both", "both", "both") is None


def test_naive_plans_without_its_prefill_instances(tmp_path: Path) -> None:
    """They idle as long as PrfaaS works, and a note says so."""
    scenario = build(tmp_path, served("prefill", "decode", "decode").replace("kind: prfaas", "kind: naive"))
    (pd,) = scenario.pd
    assert (pd.num_instances, pd.num_prefill) == (2, None)
    assert "east: 1 with duty prefill idle under policy naive, and neither planned nor priced" in scenario.notes


def test_the_way_back_is_not_planned(tmp_path: Path) -> None:
    """It needs no bandwidth."""
    back = "  - {from: east, to: west}\nworkload:"
    assert [(link.source, link.target) for link in build(tmp_path, GOOD.replace("workload:", back)).links] == [
        ("west", "east")
    ]
