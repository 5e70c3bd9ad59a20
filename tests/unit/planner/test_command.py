"""`prfaas plan` as a command: tables, one JSON object, pictures, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

CASE = Path(__file__).parents[3] / "examples" / "case-study"

KEYS = [
    "policy", "routing_threshold_tokens", "num_prfaas", "num_pd_prefill", "num_pd_decode", "offload_fraction",
    "mean_long_tokens", "mean_short_tokens", "prfaas_rps", "pd_prefill_rps", "pd_decode_rps", "system_rps", "bottleneck",
    "egress_bytes_per_s", "egress_utilization", "ttft_s_mean", "ttft_s_p90", "cost",
]  # fmt: skip


def prfaas(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    argv = [sys.executable, "-m", "prfaas", "plan", *map(str, args)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, cwd=cwd)


def changed(tmp_path: Path, old: str, new: str) -> Path:
    """The PrfaaS case with one change."""
    text = (CASE / "prfaas.yaml").read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "changed.yaml"
    file.write_text(text.replace(old, new), encoding="utf-8")
    return file


def test_json_is_one_object_with_the_promised_keys() -> None:
    """Nothing else on standard output; null where a policy has no such thing."""
    done = prfaas(CASE / "homogeneous.yaml", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert list(answer)[: len(KEYS)] == KEYS
    for key in ("routing_threshold_tokens", "num_prfaas", "offload_fraction", "prfaas_rps", "egress_bytes_per_s"):
        assert answer[key] is None


def test_comparison_as_json_has_ratios_to_the_first() -> None:
    """In the files' order."""
    names = ("homogeneous", "prfaas", "naive")
    answer = json.loads(prfaas("--compare", *(CASE / f"{name}.yaml" for name in names), "--json").stdout)
    assert answer["baseline"] == "homogeneous"
    assert [plan["name"] for plan in answer["plans"]] == list(names)
    assert [plan["ratio_system_rps"] for plan in answer["plans"]] == pytest.approx([1.0, 1.539, 1.170], abs=0.002)


def test_tables_for_people() -> None:
    """The verdict first, sources last."""
    text = prfaas(CASE / "prfaas.yaml").stdout
    assert "Offload prompts of more than 19,420 uncached tokens, 49.5% of the requests: 3.25 requests/s." in text
    assert "PrfaaS prefill and PD prefill are the limit together" in text
    assert "Table 5" in text
    side_by_side = prfaas("--compare", CASE / "homogeneous.yaml", CASE / "prfaas.yaml").stdout
    assert "1.54×" in side_by_side
    assert "1.15×" in side_by_side


@pytest.mark.parametrize(
    ("old", "new", "sentence", "bottleneck"),
    [
        ("100Gbps", "5Gbps", "The network is the limit: prfaas-west → pd-east is full", "link+pd_prefill"),
        ("output_tokens: 1024", "output_tokens: 3000", "Decode is the limit", "pd_decode"),
        ("100Gbps", "1Mbps", "Best is to offload nothing", "pd_prefill"),
        ("instances: 4,", "instances: 40,", "Best is to offload everything", "pd_decode"),
    ],
)
def test_each_kind_of_answer_is_told_plainly(
    tmp_path: Path, old: str, new: str, sentence: str, bottleneck: str
) -> None:
    """Network-bound, decode-bound, nothing to offload, everything offloaded."""
    file = changed(tmp_path, old, new)
    assert sentence in prfaas(file).stdout
    assert json.loads(prfaas(file, "--json").stdout)["bottleneck"] == bottleneck


def test_arrivals_are_compared_with_the_limit(tmp_path: Path) -> None:
    """More than it carries is told as what it is."""
    file = changed(tmp_path, "  output_tokens: 1024", "  arrivals: {poisson: {rate: 4}}\n  output_tokens: 1024")
    assert "4 requests/s are 123% of that: queues would grow without end" in prfaas(file).stdout


@pytest.mark.parametrize("ending", ["png", "svg", "html"])
@pytest.mark.parametrize("files", [("prfaas",), ("homogeneous",), ("homogeneous", "prfaas", "naive")])
def test_pictures(tmp_path: Path, ending: str, files: tuple[str, ...]) -> None:
    """Whole files of the kind that their ending says."""
    target = tmp_path / f"plan.{ending}"
    compare = ["--compare"] if len(files) > 1 else []
    done = prfaas(*compare, *(CASE / f"{name}.yaml" for name in files), "--plot", target)
    assert (done.returncode, done.stderr) == (0, f"wrote {target}\n")
    content = target.read_bytes()
    assert len(content) > 10_000
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    if ending == "png":
        assert content.startswith(b"\x89PNG")
    elif ending == "svg":
        root = ET.fromstring(content)
        assert {"title", "desc"} <= {child.tag.rpartition("}")[2] for child in root}
    else:
        assert all(name in content.decode() for name in files)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml: No such file"),
        ([CASE / "prfaas.yaml", CASE / "naive.yaml"], "add --compare"),
        (["--compare", CASE / "prfaas.yaml"], "--compare needs two files or more"),
        ([CASE / "prfaas.yaml", "--plot", "x.gif"], "the file must end in .png, .svg, .html"),
        ([CASE / "prfaas.yaml", "--plot", "no/such/folder/x.png"], "there is no folder"),
    ],
)
def test_bad_requests_are_refused(tmp_path: Path, args: list[str | Path], message: str) -> None:
    """Status 2, one clear line, nothing on standard output, nothing written."""
    done = prfaas(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bad_file_writes_no_picture(tmp_path: Path) -> None:
    """Status 2 with the line, and the picture is not touched."""
    file = changed(tmp_path, "instances: 4,", "instances: 0,")
    picture = tmp_path / "plan.png"
    picture.write_bytes(b"old")
    done = prfaas(file, "--plot", picture)
    assert done.returncode == 2
    assert "changed.yaml:7: clusters.prfaas-west.instances" in done.stderr
    assert picture.read_bytes() == b"old"


def test_a_file_without_a_workload_still_says_what_serving_lacks(tmp_path: Path) -> None:
    """`config check` takes a planning file and names what serving it would need."""
    argv = [sys.executable, "-m", "prfaas", "config", "check", str(CASE / "prfaas.yaml")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert "for planning only; to serve it:" in done.stdout
    assert "clusters.pd-east.endpoints: missing; add it" in done.stdout
