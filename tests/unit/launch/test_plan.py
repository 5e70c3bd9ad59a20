"""Command lines that a deployment becomes."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from prfaas.deployment.fronts import control_address, emulated_links
from prfaas.deployment.load import load_deployment
from prfaas.launch.addresses import AddressTaken, is_here, make_socket_directory, refuse_taken
from prfaas.launch.certificates import make_throwaway, refuse_missing
from prfaas.launch.plan import PlanError, ProcessSpec, plan_processes, throwaway_directory
from prfaas.testing.emulated_site import emulated_document

EXAMPLE = Path(__file__).parents[3] / "examples" / "two-datacenters" / "deployment.yaml"
FILE, MODEL, SOCKETS = Path("/etc/prfaas.yaml"), Path("/models/m"), Path("/run/prfaas")


def planned(text: str | None = None, tmp_path: Path | None = None, **options: object) -> dict[str, ProcessSpec]:
    """Specs by name, of the example or of other YAML."""
    path = EXAMPLE
    if text is not None and tmp_path is not None:
        path = tmp_path / "deployment.yaml"
        path.write_text(text, encoding="utf-8")
    specs = plan_processes(load_deployment(path), FILE, MODEL, SOCKETS, **options)  # type: ignore[arg-type]
    return {spec.name: spec for spec in specs}


def after(spec: ProcessSpec, option: str) -> list[str]:
    """Every value given to an option."""
    return [spec.argv[index + 1] for index, part in enumerate(spec.argv[:-1]) if part == option]


def test_nodes_come_before_engines_and_the_gateway_is_last() -> None:
    """Engines find their node; the gateway finds both."""
    assert list(planned()) == [
        "kvnode-prfaas-west-0", "kvnode-pd-east-0", "engine-prfaas-west-0", "engine-pd-east-0", "gateway",
    ]  # fmt: skip


def test_a_node_is_told_its_file_and_its_name() -> None:
    """Everything else it finds in the file; engines find it at its socket."""
    west = planned()["kvnode-prfaas-west-0"]
    assert west.argv[3:5] == ("kvnode", "/etc/prfaas.yaml")
    assert after(west, "--name") == ["prfaas-west-0"]
    assert after(west, "--socket") == ["/run/prfaas/prfaas-west-0.sock"]
    assert west.listens == ("127.0.0.1:8200", "127.0.0.1:8300")
    assert west.needs_engine


def test_an_engine_finds_its_connector_and_phones_nobody() -> None:
    """The transfer config names the node's socket; hub and usage reports are off; the file's arguments come last."""
    engine = planned()["engine-prfaas-west-0"]
    (config,) = after(engine, "--kv-transfer-config")
    assert json.loads(config)["kv_connector_extra_config"] == {"socket_path": "/run/prfaas/prfaas-west-0.sock"}
    assert json.loads(config)["kv_connector_module_path"] == "prfaas.engines.vllm.connector"
    assert after(engine, "--host") == ["127.0.0.1"]
    assert after(engine, "--port") == ["8100"]
    assert after(engine, "--max-model-len") == ["2048"]
    assert {"HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"} <= set(engine.env)
    assert engine.env["VLLM_CPU_OMP_THREADS_BIND"] == "0"
    assert engine.argv[-1] == "67108864"


SPREAD = """
model: {name: m, path: ., max_model_tokens: 2048}
clusters:
  west: {role: prfaas, endpoints: [
    {engine: "http://192.0.2.1:8100", kvnode: "http://192.0.2.1:8200", lanes: "192.0.2.1:8300"}]}
  far: {role: prfaas, endpoints: [
    {engine: "http://192.0.2.3:8100", kvnode: "http://192.0.2.3:8200", lanes: "192.0.2.3:8300"}]}
  east: {role: pd, endpoints: [
    {engine: "http://127.0.0.1:8100", kvnode: "http://127.0.0.1:8200", lanes: "127.0.0.1:8300"},
    {engine: "http://127.0.0.1:8101", kvnode: "http://127.0.0.1:8201", lanes: "127.0.0.1:8301"}]}
  south: {role: pd, endpoints: [
    {engine: "http://192.0.2.2:8100", kvnode: "http://192.0.2.2:8200", lanes: "192.0.2.2:8300"}]}
LINKS
"""


def test_engines_without_an_engine_section_are_left_to_their_owner(tmp_path: Path) -> None:
    """Their nodes are started all the same, and are healthy without them."""
    specs = planned(SPREAD.replace("LINKS", ""), tmp_path)
    assert not [name for name in specs if name.startswith("engine-")]
    assert not specs["kvnode-east-0"].needs_engine
    assert specs["gateway"].health_url.endswith("/live")
    assert planned()["gateway"].health_url.endswith("/health")


def test_only_what_is_on_this_machine_is_started(tmp_path: Path) -> None:
    """One file for all machines of a deployment."""
    text = SPREAD.replace("LINKS", "transfer: {encryption: none}")
    loopback = "127.0.0.1".__eq__
    assert list(planned(text, tmp_path, is_here=loopback)) == ["kvnode-east-0", "kvnode-east-1", "gateway"]
    assert list(planned(text, tmp_path, is_here=loopback, with_gateway=False)) == ["kvnode-east-0", "kvnode-east-1"]
    with pytest.raises(PlanError, match="none of its addresses"):
        planned(text, tmp_path, is_here=lambda host: False)


def test_the_emulated_network_comes_first_where_its_fronts_are(tmp_path: Path) -> None:
    """It binds a port below the first front, and a front for each instance of the target."""
    text = SPREAD.replace(
        "LINKS",
        """transfer: {encryption: none}
links:
  - {from: west, to: east, bandwidth: 1Gbps, rtt: 10ms, emulated_at: "127.0.0.1:9001"}
  - {from: far, to: south, bandwidth: 1Gbps, emulated_at: "127.0.0.1:9011"}
""",
    )
    specs = planned(text, tmp_path)
    assert next(iter(specs)) == "wan"
    assert specs["wan"].argv[3:] == ("wan", "/etc/prfaas.yaml")
    assert specs["wan"].health_url == "http://127.0.0.1:9000/health"
    assert specs["wan"].listens == ("127.0.0.1:9000", "127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9011")
    assert "wan" not in planned(text, tmp_path, is_here="192.0.2.1".__eq__)
    back = text.replace("rtt: 10ms,", "").replace(
        "  - {from: far", "  - {from: east, to: west, bandwidth: 2Gbps}\n  - {from: far"
    )
    (tmp_path / "back.yaml").write_text(back, encoding="utf-8")
    links = emulated_links(load_deployment(tmp_path / "back.yaml"))
    assert [(link.source, link.target, link.bytes_per_s, len(link.fronts)) for link in links] == [
        ("west", "east", 1.25e8, 2), ("east", "west", 2.5e8, 0), ("far", "south", 1.25e8, 1),
    ]  # fmt: skip
    scaled = back.replace('lanes: "', 'kind: emulated, lanes: "') + "emulation: {time_scale: 2, bytes_scale: 0.5}\n"
    (tmp_path / "scaled.yaml").write_text(scaled, encoding="utf-8")
    assert emulated_links(load_deployment(tmp_path / "scaled.yaml"))[0].bytes_per_s == 1.25e8 / 4
    assert control_address(load_deployment(EXAMPLE)) is None


TLS = "transfer: {tls: {ca: ca.pem, cert: 'c/{cluster}.pem', key: '/keys/{node}.key'}}"


def test_a_nodes_certificates_are_looked_for(tmp_path: Path) -> None:
    """Before it is started; it finds their paths in the file itself."""
    node = planned(SPREAD.replace("LINKS", TLS), tmp_path, is_here="127.0.0.1".__eq__)["kvnode-east-1"]
    assert node.reads == ("/etc/ca.pem", "/etc/c/east.pem", "/keys/east-1.key")
    assert not [part for part in node.argv if part.startswith("--tls")]
    plain = planned(SPREAD.replace("LINKS", "transfer: {encryption: none}"), tmp_path)["kvnode-east-0"]
    assert plain.reads == ()


def test_throwaway_certificates_are_named_on_the_command_line(tmp_path: Path) -> None:
    """The file does not know them."""
    node = planned(SPREAD.replace("LINKS", ""), tmp_path)["kvnode-east-0"]
    given = tuple(after(node, option)[0] for option in ("--tls-ca", "--tls-cert", "--tls-key"))
    assert given == node.reads == ("/run/prfaas/tls/ca.crt", "/run/prfaas/tls/east.pem", "/run/prfaas/tls/east.key")


def test_certificates_made_here_are_no_use_elsewhere(tmp_path: Path) -> None:
    """Who has two machines is told what to do; a machine that starts no node needs none."""
    text = SPREAD.replace("LINKS", "")
    with pytest.raises(
        PlanError, match=r"transfer\.tls: missing, and the node at http://192\.0\.2\.1:8200 is on another"
    ) as error:
        planned(text, tmp_path, is_here="127.0.0.1".__eq__)
    for remedy in (
        "'prfaas certs init'",
        "'prfaas certs issue --deployment /etc/prfaas.yaml'",
        "transfer.encryption: none",
    ):
        assert remedy in str(error.value)
    gateway_only = text.replace("127.0.0.1", "192.0.2.4")
    assert list(planned(gateway_only, tmp_path, is_here="127.0.0.1".__eq__)) == ["gateway"]


def test_throwaway_certificates_are_private_and_are_what_nodes_read(tmp_path: Path) -> None:
    """Each carries its cluster's identity; the authority's key is nowhere, so nobody can add to them."""
    file = tmp_path / "deployment.yaml"
    file.write_text(
        SPREAD.replace("LINKS", "").replace("far: {", "far: {identity: 'spiffe://x/far', "), encoding="utf-8"
    )
    deployment = load_deployment(file)
    specs = plan_processes(deployment, FILE, MODEL, tmp_path)
    with pytest.raises(PlanError, match=r"kvnode-west-0: there is no file .*/tls/ca\.crt"):
        refuse_missing(specs)
    directory = throwaway_directory(tmp_path)
    told = make_throwaway(deployment, directory)
    assert told == f"lanes are encrypted, with throw-away certificates in {directory}"
    refuse_missing(specs)
    assert directory.stat().st_mode & 0o077 == 0
    names = {"ca.crt", *(f"{name}.{kind}" for name in ("west", "far", "east", "south") for kind in ("pem", "key"))}
    assert {path.name for path in directory.iterdir()} == names
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.glob("*.key"))
    (certificate,) = x509.load_pem_x509_certificates((directory / "far.pem").read_bytes())
    alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in alternative] == ["spiffe://x/far"]


@pytest.mark.parametrize("transfer", [TLS, "transfer: {encryption: none}"])
def test_no_throwaway_certificates_where_nobody_needs_them(tmp_path: Path, transfer: str) -> None:
    """Nothing is made, nothing said."""
    file = tmp_path / "deployment.yaml"
    file.write_text(SPREAD.replace("LINKS", transfer), encoding="utf-8")
    assert make_throwaway(load_deployment(file), tmp_path / "tls") is None
    assert not (tmp_path / "tls").exists()


def test_this_machine_knows_its_addresses() -> None:
    """A documentation address (RFC 5737) is nobody's."""
    assert is_here("127.0.0.1")
    assert not is_here("203.0.113.77")


def test_an_address_in_use_is_refused_by_name() -> None:
    """Before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        spec = dataclasses.replace(planned()["gateway"], listens=(address,))
        with pytest.raises(AddressTaken, match=rf"gateway: {address} is in use by another process; stop it"):
            refuse_taken([spec])
        with pytest.raises(AddressTaken, match=r"(?s)gateway: .*gateway: .*; stop them, or change the addresses"):
            refuse_taken([spec, spec])
    refuse_taken([spec])


def test_socket_directories_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unix sockets' paths end at 107 bytes, however deep TMPDIR is."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("d" * 80)))
    directory = make_socket_directory()
    assert len(str(directory)) <= 36
    assert directory.stat().st_mode & 0o077 == 0
    directory.rmdir()


def test_emulated_engines_share_a_process_or_have_their_own(tmp_path: Path) -> None:
    """As `emulation.process_for` says."""
    document = emulated_document(num_decode=2)
    assert [
        name for name in planned(yaml.safe_dump(document, sort_keys=False), tmp_path) if name.startswith("engine")
    ] == [
        "engines-west",
        "engines-east",
    ]
    document["emulation"]["process_for"] = "instance"
    apart = planned(yaml.safe_dump(document, sort_keys=False), tmp_path)
    names = ["west-0", "east-0", "east-1", "east-2"]
    assert [name for name in apart if name.startswith("engine")] == [f"engine-{name}" for name in names]
    assert [after(apart[f"engine-{name}"], "--name") for name in names] == [[name] for name in names]
