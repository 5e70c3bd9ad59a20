"""What a deployment file has emulated."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from prfaas.core.model.layout import KVGroupKind
from prfaas.deployment.document import DeploymentError
from prfaas.deployment.load import load_deployment, read_deployment, resolve_model_dir
from prfaas.deployment.topology import topology_of
from prfaas.engines.emulated.configure import Emulated, emulated_of
from prfaas.launch.plan import plan_processes
from prfaas.scenario.served_policy import routing_threshold
from prfaas.testing.emulated_site import emulated_document

EXAMPLE = Path(__file__).parents[4] / "examples" / "emulated" / "case-study.yaml"


def emulated(path: Path, *names: str) -> Emulated:
    deployment, document = read_deployment(path)
    return emulated_of(deployment, document, resolve_model_dir(deployment, path), Path("/run/p"), names)


def written(tmp_path: Path, document: dict[str, Any]) -> Path:
    path = tmp_path / "d.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_case_study_in_its_scale() -> None:
    """Seconds and bytes shrink; the batch does not."""
    found = {each.name: each for each in emulated(EXAMPLE).instances}
    assert len(found) == 12
    west, east = found["prfaas-west-0"], found["pd-east-7"]
    # Table 5: 32K tokens take 1.84 s on eight H200; the fitted quadratic has 1.837.
    assert west.profile.prefill_s.at(32_000) == pytest.approx(0.184, rel=0.01)
    assert (east.profile.max_batch, east.profile.step_s) == (20, pytest.approx(0.0025))
    assert west.layout.image(32_001).num_bytes == pytest.approx(735_366, rel=0.02)
    assert west.layout == east.layout
    assert east.socket_path == "/run/p/pd-east-7.sock"


def test_only_the_named_ones() -> None:
    """A process for one instance."""
    assert [each.name for each in emulated(EXAMPLE, "pd-east-1").instances] == ["pd-east-1"]
    with pytest.raises(DeploymentError, match="nobody is not an instance of kind emulated; there are pd-east-0,"):
        emulated(EXAMPLE, "nobody")


def test_links_are_served_in_scale_and_planned_as_written() -> None:
    """100 Gbps: of a thousandth of the bytes in a tenth of the time, a hundredth."""
    deployment = load_deployment(EXAMPLE)
    (link,) = [link for link in topology_of(deployment).links if link.source == "prfaas-west"]
    assert link.bytes_per_s == pytest.approx(12.5e9 * 0.001 / 0.1)
    assert deployment.links[0].bandwidth == 12.5e9


def test_the_gateway_expects_the_scaled_times() -> None:
    """Of the policy prfaas: curves, steps, the SLO, what it refuses, and how often it converts."""
    deployment = load_deployment(EXAMPLE)
    policy = deployment.policy.model_copy(update={"max_ttft": 20.0})
    served = routing_threshold(deployment.model_copy(update={"policy": policy}), EXAMPLE)
    plain = routing_threshold(deployment.model_copy(update={"policy": policy, "emulation": None}), EXAMPLE)
    assert served.model is not None
    assert plain.model is not None
    assert served.threshold_tokens == plain.threshold_tokens
    for name, cluster in plain.model.clusters.items():
        scaled = served.model.clusters[name]
        assert scaled.prefill_s.at(50_000) == pytest.approx(0.1 * cluster.prefill_s.at(50_000))
        assert cluster.step_s is None or scaled.step_s == pytest.approx(0.1 * cluster.step_s)
    assert served.model.kv_bytes.at(50_000) == pytest.approx(0.001 * plain.model.kv_bytes.at(50_000))
    assert (served.model.tpot_s, served.max_ttft_s) == (pytest.approx(0.0025), pytest.approx(2.0))
    assert served.cool_down_s == pytest.approx(12.0)


def test_a_cluster_is_one_process() -> None:
    """Nodes have one each."""
    specs = plan_processes(load_deployment(EXAMPLE), EXAMPLE, Path("m"), Path("/run/p"))
    engines = {spec.name: spec for spec in specs if spec.name.startswith("engine")}
    assert list(engines) == ["engines-pd-east", "engines-prfaas-west"]
    argv = engines["engines-prfaas-west"].argv
    assert argv[3:5] == ("emulate", str(EXAMPLE))
    assert [argv[i + 1] for i, word in enumerate(argv) if word == "--name"] == [f"prfaas-west-{i}" for i in range(4)]
    assert len(engines["engines-pd-east"].listens) == 8


def test_a_config_gives_its_own_groups(tmp_path: Path) -> None:
    """Kimi Linear: MLA and KDA layers, as `cache_size_of` counts them."""
    document = emulated_document()
    document["model"]["profile"] = "kimi-linear-48b"
    west, *_ = emulated(written(tmp_path, with_measured(document, tmp_path))).instances
    kinds = {group.kind: len(group.layers) for group in west.layout.groups}
    assert kinds == {KVGroupKind.FULL_ATTENTION: 7, KVGroupKind.LINEAR_STATE: 20}


def with_measured(document: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """With a profile of its own for each cluster, which the shipped ones have for one model alone."""
    profile = tmp_path / "measured.yaml"
    profile.write_text(yaml.safe_dump({
        "profile": 1, "model": "kimi-linear-48b", "accelerator": "x", "gpus_per_instance": 8, "source": "made up",
        "prefill": {"quadratic": {"s": 0.1, "s_per_token": 1e-5}}, "decode": [{"batch": 8, "step_s": 0.02}],
    }))  # fmt: skip
    changed = copy.deepcopy(document)
    for cluster in changed["clusters"].values():
        del cluster["accelerator"]
        cluster["profile"] = profile.name
    return changed


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["clusters"]["west"].pop("accelerator"), "clusters.west: planning needs the hardware"),
        (lambda d: d["clusters"]["west"].update(accelerator="h300"), "h300"),
        (lambda d: d["model"].pop("profile"), "model: planning needs the KVCache's size"),
        (lambda d: d["clusters"]["east"].update(decode={"max_batch": 4, "step": "30ms"}), "longer than slo.tpot"),
    ],
)
def test_what_is_missing_is_told_with_its_line(tmp_path: Path, change: Any, text: str) -> None:
    """Before anything listens."""
    document = emulated_document()
    change(document)
    with pytest.raises(DeploymentError) as error:
        emulated(written(tmp_path, document))
    assert text in str(error.value)
    assert "d.yaml:" in str(error.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["clusters"]["west"]["endpoints"][0].update(kind="vllm"), "started as emulated; write the same"),
        (lambda d: [c.pop("engine") for c in d["clusters"].values()]
         and d["clusters"]["east"]["endpoints"][0].update(kind="vllm"), "which changes times and sizes"),
        (lambda d: d["emulation"].update(time_scale=0), "time_scale"),
    ],
)  # fmt: skip
def test_a_file_that_mixes_kinds_is_refused(tmp_path: Path, change: Any, text: str) -> None:
    """An engine with a model beside one that runs in a tenth of its time would be a riddle."""
    document = emulated_document()
    change(document)
    with pytest.raises(DeploymentError, match=text):
        read_deployment(written(tmp_path, document))
