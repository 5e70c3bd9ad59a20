"""From the deployment file to the topology, and the duties and names that the file may give."""

from __future__ import annotations

from pathlib import Path

import pytest

from prfaas.core.topology import Duty, Link
from prfaas.deployment.load import DeploymentError, load_deployment, read_deployment
from prfaas.deployment.topology import topology_of


def endpoint(number: int, more: str = "") -> str:
    return f"{{engine: 'http://h{number}:1', kvnode: 'http://h{number}:2', lanes: 'h{number}:3'{more}}}"


def write(tmp_path: Path, pd: list[str], *, prfaas: str = "", more: str = "", cluster: str = "") -> Path:
    path = tmp_path / "d.yaml"
    endpoints = "".join(f"\n      - {text}" for text in pd)
    path.write_text(
        "model: {name: m, path: m, max_model_tokens: 8}\n"
        f"clusters:\n  west:\n    role: prfaas\n    endpoints:\n      - {endpoint(0, prfaas)}\n"
        f"  east:\n    role: pd\n{cluster}    endpoints:{endpoints}\n{more}"
    )
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DeploymentError) as caught:
        load_deployment(path)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_without_duties_pd_instances_have_both(tmp_path: Path) -> None:
    """As before there were duties."""
    topology = topology_of(load_deployment(write(tmp_path, [endpoint(1), endpoint(2)])))
    assert [(i.name, i.cluster, i.duty, i.kind) for i in topology.instances] == [
        ("west-0", "west", Duty.PREFILL, "vllm"),
        ("east-0", "east", Duty.BOTH, "vllm"),
        ("east-1", "east", Duty.BOTH, "vllm"),
    ]
    assert (topology.instances[0].engine_url, topology.instances[0].lanes) == ("http://h0:1", "h0:3")


def test_names_and_duties_are_taken_from_the_file(tmp_path: Path) -> None:
    """A name of its own makes an instance independent of its place in the list."""
    pd = [endpoint(1, ", name: old, duty: prefill"), endpoint(2, ", duty: decode")]
    topology = topology_of(load_deployment(write(tmp_path, pd)))
    assert [(i.name, i.duty) for i in topology.instances_of("east")] == [("old", Duty.PREFILL), ("east-1", Duty.DECODE)]


def test_links_keep_what_is_known_of_them(tmp_path: Path) -> None:
    """In bytes and seconds; a second one is the way back."""
    more = "links: [{from: west, to: east, bandwidth: 8Gbps, rtt: 20ms}, {from: east, to: west, bandwidth: 8Mbps}]\n"
    topology = topology_of(load_deployment(write(tmp_path, [endpoint(1)], more=more)))
    assert topology.links == (Link("west", "east", 1e9, 0.02), Link("east", "west", 1e6, None))


def test_a_cluster_is_as_far_from_the_gateway_as_the_file_says(tmp_path: Path) -> None:
    """Beside it, if the file says nothing."""
    topology = topology_of(load_deployment(write(tmp_path, [endpoint(1)], cluster="    rtt: 279ms\n")))
    assert [(cluster.name, cluster.rtt_s) for cluster in topology.clusters] == [("west", 0.0), ("east", 0.279)]


def test_a_cluster_without_endpoints_has_no_instances(tmp_path: Path) -> None:
    """It is only planned."""
    path = write(tmp_path, [endpoint(1)], more="  south: {role: pd, instances: 4}\n")
    assert topology_of(read_deployment(path)[0]).instances_of("south") == ()


@pytest.mark.parametrize(
    ("pd", "options", "expected"),
    [
        ([endpoint(1)], {"prfaas": ", duty: decode"},
         "d.yaml:6: clusters.west.endpoints.0.duty: decode, but a cluster with role prfaas only prefills; remove it"),
        ([endpoint(1)], {"prfaas": ", duty: both"}, "d.yaml:6: clusters.west.endpoints.0.duty: both, but"),
        ([endpoint(1, ", duty: prefill")], {}, "d.yaml:9: clusters.east.endpoints: every instance has duty prefill, so nothing decodes"),
        ([endpoint(1, ", duty: decode")], {}, "d.yaml:9: clusters.east.endpoints: every instance has duty decode, so nothing prefills"),
        ([endpoint(1), endpoint(2)], {"cluster": "    prefill_instances: 1\n"},
         "d.yaml:9: clusters.east.prefill_instances: 1, but 0 of the endpoints have duty: prefill; give as many"),
        ([endpoint(1, ", duty: serve")], {}, "d.yaml:10: clusters.east.endpoints.0.duty: Input should be 'prefill', 'decode' or 'both'"),
        ([endpoint(1, ", kind: sglang")], {}, "d.yaml:10: clusters.east.endpoints.0.kind: Input should be 'vllm'"),
        ([endpoint(1, ", name: x"), endpoint(2, ", name: x")], {},
         "d.yaml:11: clusters.east.endpoints.1.name: x is the name of clusters.east.endpoints.0 already"),
        ([endpoint(1, ", name: east-1"), endpoint(2)], {},
         "d.yaml:11: clusters.east.endpoints.1.name: east-1 is the name of clusters.east.endpoints.0 already"),
        ([endpoint(1)], {"more": "links: [{from: west, to: east}, {from: east, to: east}]\n"},
         "d.yaml:11: links.1.from: cluster 'east' has role pd; a link goes from prfaas to pd, and a second one may lead back"),
        ([endpoint(1)], {"more": "links: [{from: east, to: west}]\n"}, "d.yaml:11: links.0.to: cluster 'west' has role prfaas"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, pd: list[str], options: dict[str, str], expected: str
) -> None:
    """With line, field and remedy."""
    assert expected in refusal(write(tmp_path, pd, **options))


def test_naive_may_have_instances_that_prefill(tmp_path: Path) -> None:
    """They stand by for the time when no PrfaaS instance works. So one file serves every policy."""
    pd = [endpoint(1), endpoint(2, ", duty: prefill")]
    more = "links: [{from: west, to: east}]\npolicy: {kind: naive}\n"
    assert len(topology_of(load_deployment(write(tmp_path, pd, more=more))).decoders) == 1


@pytest.mark.parametrize("kind", ["prefill", "both"])
def test_prefill_and_decode_instances_may_be_apart(tmp_path: Path, kind: str) -> None:
    """As in the paper; a number that agrees may be given too."""
    pd = [endpoint(1, f", duty: {kind}"), endpoint(2, ", duty: decode"), endpoint(3, ", duty: decode")]
    cluster = f"    prefill_instances: {int(kind == 'prefill')}\n"
    assert len(topology_of(load_deployment(write(tmp_path, pd, cluster=cluster))).decoders) >= 2
