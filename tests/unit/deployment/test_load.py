"""A deployment file is read as it was meant, or refused with the line, the field, and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prfaas.deployment.load import MAX_FILE_BYTES, DeploymentError, load_deployment, resolve_model_dir
from prfaas.deployment.model import Deployment

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("**/deployment.yaml"))

GOOD = """\
model: {name: m, path: models/m, max_model_tokens: 2048}
clusters:
  west:
    role: prfaas
    endpoints:
      - engine: http://10.1.0.1:8100
        kvnode: http://10.1.0.1:8200
        lanes: 10.1.0.1:8300
  east:
    role: pd
    endpoints:
      - engine: http://10.2.0.1:8100
        kvnode: http://10.2.0.1:8200
        lanes: 10.2.0.1:8300
links:
  - {from: west, to: east, bandwidth: 100Gbps, rtt: 20ms}
policy: {kind: fixed, routing_threshold_tokens: 512}
transfer: {chunk: 1MiB}
"""


def load(tmp_path: Path, text: str | bytes) -> Deployment:
    file = tmp_path / "d.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_deployment(file)


def refusal(tmp_path: Path, text: str | bytes) -> str:
    """The error's text, with the folder cut from it."""
    with pytest.raises(DeploymentError) as error:
        load(tmp_path, text)
    return str(error.value).replace(f"{tmp_path}/", "")


def test_reads_quantities_in_si(tmp_path: Path) -> None:
    """Gbps and ms in the file, bytes and seconds inside."""
    deployment = load(tmp_path, GOOD)
    assert deployment.links[0].bandwidth == 12.5e9
    assert deployment.links[0].rtt == 0.02
    assert deployment.transfer.chunk == 1 << 20
    assert list(deployment.clusters_of_role("pd")) == ["east"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_examples_are_valid(path: Path) -> None:
    """What is shown works."""
    assert load_deployment(path).clusters


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("lanes: 10.1.0.1:8300", "lanez: 10.1.0.1:8300", "d.yaml:8: clusters.west.endpoints.0.lanez: unknown field; did you mean 'lanes'?"),
        ("policy: {kind", "polcy: {kind", "d.yaml:17: polcy: unknown field; did you mean 'policy'?"),
        ("transfer: {chunk", "transfer: {zzz: 1, chunk", "d.yaml:18: transfer.zzz: unknown field; known here: lanes, chunk,"),
        ("path: models/m, ", "", "d.yaml:1: model.path: missing; add it"),
        ("max_model_tokens: 2048", "max_model_tokens: many", "d.yaml:1: model.max_model_tokens: "),
        ("chunk: 1MiB", "chunk: 1MB/s", "d.yaml:18: transfer.chunk: '1MB/s' is not a size; write for example 256MiB"),
        ("bandwidth: 100Gbps", "bandwidth: 100", "d.yaml:16: links.0.bandwidth: 100 is not a bandwidth; write for example 100Gbps"),
        ("from: west", "from: wset", "d.yaml:16: links.0.from: there is no cluster 'wset'; there are west, east"),
        ("from: west, to: east", "from: east, to: west", "d.yaml:16: links.0.from: cluster 'east' has role pd; a link goes from prfaas to pd"),
        ("rtt: 20ms}", "rtt: 20ms}\n  - {from: west, to: east}", "d.yaml:17: links.1: west to east is given twice; remove one"),
        ("10.2.0.1:8300", "10.1.0.1:8300", "d.yaml:14: clusters.east.endpoints.0.lanes: 10.1.0.1:8300 is taken by clusters.west.endpoints.0.lanes"),
        ("http://10.2.0.1:8100", "http://127.0.0.1:8000", "d.yaml:12: clusters.east.endpoints.0.engine: 127.0.0.1:8000 is taken by gateway"),
        ("http://10.2.0.1:8100", "http://10.2.0.1:8100/v1", "give host and port only, without a path such as /v1"),
        ("http://10.2.0.1:8200", "http://10.2.0.1:99999", "d.yaml:13: clusters.east.endpoints.0.kvnode: "),
        ("http://10.2.0.1:8200", "http://10.2.0.1", "has no port; add one"),
        ("role: pd", "role: prfaas", "d.yaml:2: clusters: at least one with role: pd is needed"),
        ("role: prfaas", "role: pd", "d.yaml:17: policy.kind: fixed needs a cluster with role: prfaas"),
        ("  west:", "  West:", "d.yaml:3: clusters.West: "),
        ("rtt: 20ms}", "rtt: 20ms", "d.yaml:17: not valid YAML: "),
        ("model: {", "model: 1\nmodel: {", "d.yaml:2: 'model' is given twice; remove one"),
        ("clusters:", "clusters: !!python/object:os.system\nx:", "not valid YAML"),
        ("name: m", "name: !!bool m", "d.yaml:1: 'm' does not fit its tag bool"),
        ("chunk: 1MiB", "encryption: ssl", "d.yaml:18: transfer.encryption: Input should be 'tls' or 'none' (got 'ssl')"),
        ("chunk: 1MiB", "tls: {ca: a, cert: b}", "d.yaml:18: transfer.tls.key: missing; add it"),
        ("chunk: 1MiB", "tls: {ca: a, cert: 'b/{host}', key: c}", "d.yaml:18: transfer.tls.cert: '{host}' is not a placeholder; known are {cluster} and {node}"),
        ("chunk: 1MiB", "tls: {ca: a, cert: b, key: 'c{'}", "d.yaml:18: transfer.tls.key: '{' is not a placeholder"),
        ("chunk: 1MiB", "encryption: none, tls: {ca: a, cert: b, key: c}", "d.yaml:18: transfer.tls: encryption is none, so these files would not be used"),
        ("role: pd", "role: pd\n    identity: 'p d'", "d.yaml:11: clusters.east.identity: 'p d' is neither a DNS name nor a URI"),
        ("role: pd", "role: pd\n    rtt: near", "d.yaml:11: clusters.east.rtt: 'near' is not a duration; write for example 20ms"),
        ("role: pd", "role: pd\n    rtt: -1ms", "d.yaml:11: clusters.east.rtt: '-1ms' is not a duration; write for example 20ms"),
        ("name: m", "? [a]\n: m", "d.yaml:"),
        ("transfer: {", "gateway: {max_inflight_bytes: 1MiB}\ntransfer: {", "d.yaml:18: gateway.max_body: 8388608 bytes are more than max_inflight_bytes, so such a body could never be taken"),
        ("rtt: 20ms}", "rtt: 20ms, emulated_at: 'here'}", "d.yaml:16: links.0.emulated_at: "),
        ("bandwidth: 100Gbps, rtt: 20ms}", "emulated_at: '127.0.0.1:9001'}", "d.yaml:16: links.0.emulated_at: the link has no bandwidth to emulate; add it"),
        ("rtt: 20ms}", "emulated_at: '127.0.0.1:1'}", "d.yaml:16: links.0.emulated_at: ports 0 and 1 are needed; there are 1 to 65535"),
        ("rtt: 20ms}", "emulated_at: '127.0.0.1:65536'}", "d.yaml:16: links.0.emulated_at: ports 65535 and 65536 are needed"),
        ("rtt: 20ms}", "emulated_at: '10.1.0.1:8300'}", "d.yaml:16: links.0.emulated_at: 10.1.0.1:8300 is taken by clusters.west.endpoints.0.lanes; a link needs a port for each instance"),
        ("rtt: 20ms}", "emulated_at: '127.0.0.1:8001'}", "d.yaml:16: links.0.emulated_at: 127.0.0.1:8000, one below, is where `prfaas wan` is controlled, and is taken by gateway; choose another port"),
        ("rtt: 20ms}", "emulated_at: '127.0.0.1:9001'}\n  - {from: east, to: west, bandwidth: 1Gbps, emulated_at: '127.0.0.1:9001'}", "d.yaml:17: links.1.emulated_at: 127.0.0.1:9001 is taken by links.0.emulated_at"),
        ("rtt: 20ms}", "emulated_at: '127.0.0.1:9001'}\n  - {from: east, to: west, bandwidth: 1Gbps, emulated_at: '10.0.0.1:9002'}", "d.yaml:17: links.1.emulated_at: one process emulates all links, and links.0.emulated_at is on 127.0.0.1; write 127.0.0.1:9002"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_line_and_its_remedy(tmp_path: Path, old: str, new: str, expected: str) -> None:
    """One change to a good file at a time."""
    assert old in GOOD
    assert expected in refusal(tmp_path, GOOD.replace(old, new, 1))


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    """Nobody wants to run it three times."""
    text = GOOD.replace("role: pd", "role: decode").replace("name: m,", "nam: m,").replace("1MiB", "1")
    lines = refusal(tmp_path, text).splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "model.nam",
        "clusters.east.role",
        "transfer.chunk",
    ]
    assert all(re.match(r"d\.yaml:\d+: ", line) for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must be a map"),
        ("- a", "must be a map"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
        ("a\x00b", "not valid YAML"),
        ("a: &a [*a]", "d.yaml"),
        ("a: " + "[" * 5000, "d.yaml"),
        (b" " * (MAX_FILE_BYTES + 1), "larger than 4 MiB"),
        ("a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 9)}]\n" for i in range(9)),
         "is an alias repeated without end?"),
    ],
)  # fmt: skip
def test_what_is_no_deployment_at_all_is_refused_quickly(tmp_path: Path, text: str | bytes, expected: str) -> None:
    """Empty, binary, huge, endless."""
    assert expected in refusal(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """One line, no traceback."""
    with pytest.raises(DeploymentError, match="No such file"):
        load_deployment(tmp_path / "none.yaml")
    with pytest.raises(DeploymentError, match="directory"):
        load_deployment(tmp_path)


def test_a_prfaas_cluster_that_no_link_leaves_is_refused(tmp_path: Path) -> None:
    """It would never be used; without any links, all are connected."""
    more = "  idle:\n    role: prfaas\n    endpoints:\n      - {engine: 'http://a:1', kvnode: 'http://a:2', lanes: 'a:3'}\n"
    text = GOOD.replace("links:", f"{more}links:")
    assert "d.yaml:15: clusters.idle: no link starts here" in refusal(tmp_path, text)
    assert load(tmp_path, re.sub(r"links:\n.*\n", "", text)).links == ()


def test_the_models_directory_starts_at_the_file(tmp_path: Path) -> None:
    """Wherever the command was started."""
    deployment = load(tmp_path, GOOD)
    with pytest.raises(DeploymentError, match=r"model\.path: .*/models/m has no config\.json"):
        resolve_model_dir(deployment, tmp_path / "d.yaml")
    (tmp_path / "models/m").mkdir(parents=True)
    (tmp_path / "models/m/config.json").write_text("{}")
    assert resolve_model_dir(deployment, tmp_path / "d.yaml") == tmp_path / "models/m"


_KEYS = st.sampled_from(
    ["model", "clusters", "links", "policy", "transfer", "gateway", "name", "role", "endpoints", "from", "x", "0", ""]
)
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
_TREES = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4))


@given(_TREES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_yaml_is_loaded_or_refused(tmp_path: Path, tree: Any) -> None:
    """Never another exception."""
    load_or_refuse(tmp_path, yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


@given(st.text(st.sampled_from("{}[]:,-&*!|>?#%@`'\" \n\tab1<="), max_size=40).map(str.encode) | st.binary(max_size=40))
@example(b"!!timestamp x").via("PyYAML: AttributeError")
@example(b"a: !!int ''").via("PyYAML: IndexError")
@example(b"2001-01-01T00:00:00+99:99")
@example(b"? !!binary x\n: y")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_loaded_or_refused(tmp_path: Path, raw: bytes) -> None:
    """Never another exception."""
    load_or_refuse(tmp_path, raw)


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_good_file_with_one_wrong_value_is_loaded_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Any place, any value; a refusal names the file and nothing of Python."""
    tree = yaml.safe_load(GOOD)
    place: Any = tree
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(_TREES)
    load_or_refuse(tmp_path, yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


def load_or_refuse(tmp_path: Path, raw: bytes) -> None:
    try:
        load(tmp_path, raw)
    except DeploymentError as error:
        assert str(error).startswith(f"{tmp_path}/d.yaml")
        assert "pydantic" not in str(error)
