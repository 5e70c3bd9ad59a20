"""A node's settings from the deployment file, from the command line, and from both."""

from __future__ import annotations

from pathlib import Path

import pytest

from prfaas.core.link.lane_plan import MAX_LANES, num_lanes
from prfaas.core.topology import Link
from prfaas.deployment.document import DeploymentError
from prfaas.deployment.load import load_deployment
from prfaas.deployment.model import Transfer
from prfaas.kvnode.config import KVNodeConfig
from prfaas.kvnode.configure import NodeFlags, config_by_hand, config_of, lane_limits, read_config
from prfaas.transport.credentials import CredentialFiles
from prfaas.transport.limits import LaneLimits

FILE = Path("/etc/prfaas.yaml")
EXAMPLE = Path(__file__).parents[3] / "examples" / "two-datacenters" / "deployment.yaml"
SPREAD = """
model: {name: m, path: ., max_model_tokens: 2048}
clusters:
  west: {role: prfaas, endpoints: [
    {engine: "http://192.0.2.1:8100", kvnode: "http://192.0.2.1:8200", lanes: "192.0.2.1:8300"}]}
  far: {role: prfaas, identity: "spiffe://x/far", endpoints: [
    {engine: "http://192.0.2.3:8100", kvnode: "http://192.0.2.3:8200", lanes: "192.0.2.3:8300"}]}
  east: {role: pd, endpoints: [
    {engine: "http://127.0.0.1:8100", kvnode: "http://127.0.0.1:8200", lanes: "127.0.0.1:8300"},
    {engine: "http://127.0.0.1:8101", kvnode: "http://127.0.0.1:8201", lanes: "127.0.0.1:8301"}]}
  south: {role: pd, endpoints: [
    {engine: "http://192.0.2.2:8100", kvnode: "http://192.0.2.2:8200", lanes: "192.0.2.2:8300"}]}
MORE
"""
TLS = "transfer: {tls: {ca: ca.pem, cert: 'c/{cluster}.pem', key: '/keys/{node}.key'}}"
PLAIN = NodeFlags(plain=True)


def configured(tmp_path: Path, more: str, name: str, flags: NodeFlags = PLAIN) -> KVNodeConfig:
    path = tmp_path / "d.yaml"
    path.write_text(SPREAD.replace("MORE", more), encoding="utf-8")
    config = config_of(load_deployment(path), FILE, name, "/s", flags)
    assert config is not None
    return config


def test_a_node_finds_its_addresses_and_where_it_sends() -> None:
    """Only the PrfaaS side sends; both agree on how blocks are named."""
    found = [config_of(load_deployment(EXAMPLE), FILE, name, "/s", PLAIN) for name in ("prfaas-west-0", "pd-east-0")]
    west, east = found
    assert west is not None
    assert east is not None
    assert west.peers == {"pd-east-0": ("127.0.0.1", 8301)}
    assert east.peers == {}
    assert (west.http_host, west.http_port, west.lanes_host, west.lanes_port) == ("127.0.0.1", 8200, "127.0.0.1", 8300)
    assert (west.limits.num_lanes, west.limits.max_lanes, west.limits.chunk_bytes) == (4, 4, 1 << 20)
    assert west.hash == east.hash
    assert west.hash.seed == "prfaas"


def test_without_links_a_prfaas_node_sends_to_every_pd_node(tmp_path: Path) -> None:
    """With links, only where they lead."""
    assert list(configured(tmp_path, "", "west-0").peers) == ["east-0", "east-1", "south-0"]
    links = "links: [{from: west, to: south}, {from: far, to: east}]"
    assert configured(tmp_path, links, "west-0").peers == {"south-0": ("192.0.2.2", 8300)}


def test_emulated_links_are_dialled_at_their_fronts(tmp_path: Path) -> None:
    """One per instance of the target, in file order; other links, and lanes inside a cluster, as ever."""
    links = """links:
  - {from: west, to: east, bandwidth: 1Gbps, emulated_at: "127.0.0.1:9001"}
  - {from: west, to: south}
  - {from: far, to: south, bandwidth: 1Gbps, emulated_at: "127.0.0.1:9003"}
"""
    assert configured(tmp_path, links, "west-0").peers == {
        "east-0": ("127.0.0.1", 9001), "east-1": ("127.0.0.1", 9002), "south-0": ("192.0.2.2", 8300),
    }  # fmt: skip
    assert configured(tmp_path, links, "far-0").peers == {"south-0": ("127.0.0.1", 9003)}
    path = tmp_path / "d.yaml"
    apart = SPREAD.replace("MORE", links).replace('127.0.0.1:8301"', '127.0.0.1:8301", duty: prefill')
    path.write_text(apart, encoding="utf-8")
    inside = config_of(load_deployment(path), FILE, "east-1", "/s", PLAIN)
    assert inside is not None
    assert inside.peers == {"east-0": ("127.0.0.1", 8300)}


def test_a_node_finds_its_certificate_and_whom_to_expect(tmp_path: Path) -> None:
    """Paths start at the deployment file; the others are those at either end of its lanes."""
    more = f"links: [{{from: west, to: south}}, {{from: far, to: east}}]\n{TLS}"
    node = configured(tmp_path, more, "east-1", NodeFlags())
    assert node.tls == CredentialFiles("/etc/ca.pem", "/etc/c/east.pem", "/keys/east-1.key")
    assert (node.identity, node.identities) == ("east", {"far-0": "spiffe://x/far"})
    far = configured(tmp_path, more, "far-0", NodeFlags())
    assert (far.identity, far.identities) == ("spiffe://x/far", {"east-0": "east", "east-1": "east"})


def test_a_node_of_a_file_lets_nobody_in_if_nobody_sends_to_it(tmp_path: Path) -> None:
    """One that was started by hand knows only the names."""
    links = "links: [{from: west, to: south}, {from: far, to: south}]"
    assert configured(tmp_path, links, "east-0").identities == {}
    assert config_by_hand("a-0", "/s", NodeFlags(http=("h", 1), lanes=("h", 2))).identities is None


def test_plaintext_only_if_somebody_says_so(tmp_path: Path) -> None:
    """The file or the command line; neither leaves it out."""
    assert configured(tmp_path, "transfer: {encryption: none}", "east-0", NodeFlags()).tls is None
    assert configured(tmp_path, TLS, "east-0", NodeFlags(plain=True)).tls is None
    with pytest.raises(DeploymentError, match=r"prfaas\.yaml: transfer\.tls: missing; name the files"):
        configured(tmp_path, "", "east-0", NodeFlags())


def test_options_override_the_file(tmp_path: Path) -> None:
    """Each by itself; what is not given stays as the file has it."""
    files = CredentialFiles("a", "b", "c")
    flags = NodeFlags(
        http=("h", 1), lanes=("h", 2), arena_bytes=1 << 20, peers={"x-0": ("x", 3)}, num_lanes=40, chunk_bytes=4096,
        congestion="cubic", pacing=False, hash_seed="other", tls=files, identities={"west-0": "w"},
    )  # fmt: skip
    node = configured(tmp_path, TLS, "west-0", flags)
    assert (node.http_host, node.http_port, node.lanes_host, node.lanes_port) == ("h", 1, "h", 2)
    assert (node.arena_bytes, node.peers, node.tls, node.identity) == (1 << 20, {"x-0": ("x", 3)}, files, "w")
    assert (node.hash.algorithm, node.hash.seed) == ("sha256", "other")
    limits = node.limits
    assert (limits.num_lanes, limits.max_lanes, limits.chunk_bytes) == (40, 40, 4096)
    assert (limits.congestion, limits.pacing) == ("cubic", False)


def test_by_hand_and_by_file_have_the_same_defaults(tmp_path: Path) -> None:
    """A setting's default stands once."""
    by_hand = config_by_hand("east-0", "/s", NodeFlags(http=("127.0.0.1", 8200), lanes=("127.0.0.1", 8300)))
    by_file = configured(tmp_path, "", "east-0")
    for name in ("arena_bytes", "limits", "hash", "tls", "http_host", "lanes_port"):
        assert getattr(by_hand, name) == getattr(by_file, name)
    assert by_hand.limits == LaneLimits()


@pytest.mark.parametrize(
    ("transfer", "links", "lanes", "most"),
    [
        ({}, [], 4, MAX_LANES),
        ({"lanes": 7}, [Link("a", "b", 12.5e9, 0.02)], 7, 7),
        ({}, [Link("a", "b", 1.25e9, 0.02), Link("a", "c")], num_lanes(1.25e9, 0.02, congestion="bbr"), MAX_LANES),
        ({"congestion": "cubic"}, [], 8, MAX_LANES),
    ],
)
def test_lanes_follow_the_widest_link(transfer: dict[str, object], links: list[Link], lanes: int, most: int) -> None:
    """A number that was asked for is kept."""
    limits = lane_limits(Transfer.model_validate(transfer), links)
    assert (limits.num_lanes, limits.max_lanes) == (lanes, most)


def test_a_name_that_no_instance_has_gives_no_settings(tmp_path: Path) -> None:
    """Whoever asked says so; a node that was removed must learn it."""
    path = tmp_path / "d.yaml"
    path.write_text(SPREAD.replace("MORE", ""), encoding="utf-8")
    assert read_config(path, "east-9", "/s", PLAIN) is None
