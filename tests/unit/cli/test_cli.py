"""Commands answer quickly, and refuse bad input with one sentence and status 2."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from prfaas import __version__
from prfaas.cli.arguments import BadArgument, host_port, identities, node_name, peers, size, socket_path
from prfaas.cli.main import app
from prfaas.demo.requests import Served, prompt_of
from prfaas.kvnode.config import KVNodeConfig
from prfaas.testing.gateway_rig import write_tiny_model
from prfaas.transport.credentials import CredentialFiles

EXAMPLES = Path(__file__).parents[3] / "examples"
EXAMPLE = EXAMPLES / "two-datacenters" / "deployment.yaml"
#: The promise is 150 ms; a busy test machine gets room.
MAX_HELP_S = 1.0
#: Of every command.
SHARED = ("--help",)
TLS = {"--tls-ca": "ca.pem", "--tls-cert": "x.pem", "--tls-key": "x.key"}


def prfaas(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "prfaas", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


def refused(*arguments: str) -> str:
    """Status 2, nothing on standard output, no traceback; returns the message."""
    done = prfaas(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_help_and_version_are_quick() -> None:
    """Nothing heavy is imported before a command needs it."""
    best_s = 60.0
    for _ in range(3):
        started_s = time.monotonic()
        done = prfaas("--help")
        best_s = min(best_s, time.monotonic() - started_s)
    assert best_s < MAX_HELP_S
    for command in ("gateway", "kvnode", "up", "demo", "doctor", "config", "certs"):
        assert command in done.stdout
    assert prfaas("--version").stdout == f"prfaas {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    """The same promise without a clock."""
    code = "import sys, prfaas.cli.main; print(*{'rich', 'pydantic', 'yaml', 'aiohttp', 'uvicorn', 'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_config_check() -> None:
    """A good file is praised, a bad one refused with its line."""
    done = prfaas("config", "check", str(EXAMPLE))
    assert done.returncode == 0
    assert "clusters prfaas-west (prfaas), pd-east (pd)" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("encryption", "expected"),
    [
        ("none", "warning: KV crosses the network in plaintext, to 10.0.0.1:8300;"),
        ("tls", "note: transfer.tls is missing; 'prfaas up' needs it unless every node is on one machine"),
    ],
)
def test_config_check_says_what_is_not_protected(tmp_path: Path, encryption: str, expected: str) -> None:
    """In one line on standard error; the file is fine all the same."""
    file = tmp_path / "d.yaml"
    text = EXAMPLE.read_text(encoding="utf-8").replace("127.0.0.1:8300", "10.0.0.1:8300")
    file.write_text(text.replace("transfer: {", f"transfer: {{encryption: {encryption}, "), encoding="utf-8")
    done = prfaas("config", "check", str(file))
    assert done.returncode == 0
    assert done.stderr.startswith(f"{file}: {expected}")
    assert done.stderr.count("\n") == 1


def test_bad_files_are_refused_by_every_command(tmp_path: Path) -> None:
    """The same sentence wherever the file is read."""
    file = tmp_path / "bad.yaml"
    file.write_text("modell: {}\n")
    for command in (["config", "check"], ["up"], ["gateway"]):
        assert f"{file}:1: modell: unknown field; did you mean 'model'?" in refused(*command, str(file)).replace(
            "\n", " "
        )
    assert "No such file" in refused("gateway", str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"--http": "nowhere"}, "--http: 'nowhere' is not HOST:PORT"),
        ({"--lanes": "127.0.0.1:99999"}, "--lanes: '127.0.0.1:99999' is not HOST:PORT"),
        ({"--arena": "10"}, "--arena: 10 is outside 65536 to"),
        ({"--arena": "lots"}, "--arena: 'lots' is not a size"),
        ({"--chunk": "1GiB"}, "--chunk: 1GiB is outside 4096 to"),
        ({"--peer": "west"}, "--peer: 'west' is not NAME=HOST:PORT"),
        ({"--name": "../x"}, "--name: '../x' is not a node's name"),
        ({"--socket": "/" + "x" * 107}, "--socket: a Unix socket's path has 1 to 107 bytes"),
        ({"--log-level": "LOUD"}, "LOUD"),
        ({"--num-lanes": "0"}, "--num-lanes"),
        ({"--tls-ca": "a"}, "--tls-cert: missing; --tls-ca, --tls-cert and --tls-key belong together"),
        ({"--tls-ca": "a", "--tls-cert": "b"}, "--tls-key: missing"),
        ({**TLS, "--identity": "pd-0"}, "--identity: 'pd-0' is not NAME=IDENTITY; write for example pd-east-0=pd-east"),
        ({**TLS, "--identity": "pd-0=p d"}, "--identity: 'p d' is neither a DNS name nor a URI"),
        ({**TLS, "--identity": "/=pd"}, "--identity: '/' is not a node's name"),
    ],
)
def test_kvnode_refuses_bad_options(change: dict[str, str], expected: str) -> None:
    """Naming the option and how to write it."""
    options = {"--name": "a", "--http": "127.0.0.1:0", "--lanes": "127.0.0.1:0", "--socket": "/nowhere/s", **change}
    plain = [] if "--tls-ca" in change else ["--plain"]
    assert expected in refused("kvnode", *plain, *(part for pair in options.items() for part in pair))


def test_kvnode_tells_which_names_the_file_has() -> None:
    """A name that is not in it is most often a wrong guess at one that is."""
    served = EXAMPLES / "pd-cluster" / "deployment.yaml"
    planned = EXAMPLES / "case-study" / "prfaas.yaml"
    has = refused("kvnode", str(served), "--name", "pd-east-0", "--socket", "/nowhere/s")
    assert "has no instance pd-east-0; it has west-a, east-p, east-d1, east-d2" in has
    assert "add clusters.*.endpoints" in refused("kvnode", str(planned), "--name", "a", "--socket", "/nowhere/s")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], "lanes are encrypted: give --tls-ca, --tls-cert and --tls-key ('prfaas certs' makes the files), or --plain"),
        (["--plain", *(part for pair in TLS.items() for part in pair)], "--plain: contradicts --tls-ca"),
        (["--tls-ca", "", "--tls-cert", "", "--tls-key", ""], "--tls-ca: missing;"),
        (["--plain", "--identity", "a-0=a"], "--identity: nothing is checked with --plain"),
    ],
)  # fmt: skip
def test_plaintext_must_be_asked_for(more: list[str], expected: str) -> None:
    """Neither by leaving something out nor by saying both."""
    options = ["--name", "a", "--http", "127.0.0.1:0", "--lanes", "127.0.0.1:0", "--socket", "/nowhere/s"]
    assert expected in refused("kvnode", *options, *more)


def test_a_node_is_told_who_it_and_the_others_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers without an --identity must carry their cluster's name."""
    told: list[KVNodeConfig] = []

    def run(config: KVNodeConfig) -> int:
        told.append(config)
        return 0

    monkeypatch.setattr("prfaas.kvnode.server.run", run)
    argv = ["kvnode", "--name", "west-0", "--http", "127.0.0.1:1", "--lanes", "127.0.0.1:2", "--socket", "/s"]
    argv += ["--peer", "east-0=h:1", "--peer", "south-10=h:2", *(part for pair in TLS.items() for part in pair)]
    argv += ["--identity", "west-0=spiffe://x/west", "--identity", "south-10=s.example.com", "--identity", "far-0=f"]
    assert CliRunner().invoke(app, argv).exit_code == 0
    (config,) = told
    assert config.tls == CredentialFiles("ca.pem", "x.pem", "x.key")
    assert config.identity == "spiffe://x/west"
    assert config.identities == {"east-0": "east", "south-10": "s.example.com", "far-0": "f"}


def test_arguments() -> None:
    """What is accepted, and as what."""
    assert host_port("--x", "[::1]:80") == ("::1", 80)
    assert size("--x", "64KiB", 1 << 16) == 1 << 16
    assert node_name("--x", "pd-east-0") == "pd-east-0"
    assert socket_path("--x", "/s") == "/s"
    assert peers(["a=h:1", "b=h:2", "a=h:1"]) == {"a": ("h", 1), "b": ("h", 2)}
    with pytest.raises(BadArgument, match="given twice"):
        peers(["a=h:1", "a=h:2"])
    assert identities(["a-0=spiffe://x/y=z", "a-0=spiffe://x/y=z"], plain=False) == {"a-0": "spiffe://x/y=z"}
    with pytest.raises(BadArgument, match="given twice"):
        identities(["a-0=b", "a-0=c"], plain=False)


def test_a_node_starts_answers_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    """As `prfaas up` runs it; an orderly end is status 0."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        http, lanes = one.getsockname()[1], two.getsockname()[1]
    argv = [sys.executable, "-m", "prfaas", "kvnode", "--name", "cli-test", "--http", f"127.0.0.1:{http}"]
    argv += ["--lanes", f"127.0.0.1:{lanes}", "--socket", str(tmp_path / "s"), "--arena", "1MiB", "--plain"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{http}/health", timeout=2) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(str(tmp_path / "s"))
            engine.sendall(b"\0")
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read(), "an engine that is still connected is no error"


def node_options(folder: Path) -> dict[str, str]:
    return {"--name": "cli-test", "--http": "127.0.0.1:0", "--lanes": "127.0.0.1:0", "--socket": str(folder / "s"),
            "--arena": "1MiB"}  # fmt: skip


def failed_start(*argv: str) -> list[str]:
    """The lines that a command says before it ends with status 1."""
    done = subprocess.run(
        [sys.executable, "-m", "prfaas", *argv], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if "lanes are plain" not in line]


@pytest.mark.parametrize("option", ["--http", "--lanes"])
def test_a_node_whose_address_is_taken_says_so_before_it_makes_anything(tmp_path: Path, option: str) -> None:
    """One line with the address and the option, status 1; no arena was made, and the socket's path is free again."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        options = {**node_options(tmp_path), option: address, "--arena": "1024TiB"}
        (line,) = failed_start("kvnode", "--plain", *(part for pair in options.items() for part in pair))
    expected = f"KV node cli-test cannot start: {address} is in use by another process; stop it, or change {option}"
    assert line.endswith(expected)
    assert not (tmp_path / "s").exists()


def test_a_node_does_not_take_another_ones_socket(tmp_path: Path) -> None:
    """The first goes on."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        (line,) = failed_start("kvnode", "--plain", *(part for pair in node_options(tmp_path).items() for part in pair))
        assert f"cannot start: --socket {tmp_path}/s: another process listens there" in line
        assert (tmp_path / "s").is_socket()


def test_a_gateway_whose_port_is_taken_says_so_and_never_that_it_listens(tmp_path: Path) -> None:
    """Its last line has host, port and what to change, status 1."""
    write_tiny_model(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        endpoint = '{engine: "http://127.0.0.1:9", kvnode: "http://127.0.0.1:10", lanes: "127.0.0.1:11"}'
        (tmp_path / "deployment.yaml").write_text(
            f"model: {{name: tiny, path: ., max_model_tokens: 64}}\n"
            f"clusters:\n  pd: {{role: pd, endpoints: [{endpoint}]}}\n"
            f"policy: {{kind: homogeneous}}\ngateway: {{port: {port}}}\n"
        )
        *before, line = failed_start("gateway", str(tmp_path / "deployment.yaml"))
    assert not [told for told in before if "listening" in told]
    what_to_do = "stop it, or change gateway.host or gateway.port"
    assert line == f"the gateway cannot start: 127.0.0.1:{port} is in use by another process; {what_to_do}"


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        ({"uncached_tokens": 600, "route": "remote", "kv_bytes_moved": 9, "tokens_recomputed": 1}, None),
        ({"uncached_tokens": 600, "route": "local", "fallback_reason": "deadline"}, "was served local (deadline), not remote"),
        ({"uncached_tokens": 600, "route": "remote", "kv_bytes_moved": 0, "tokens_recomputed": 1}, "moved 0 bytes of KV and recomputed 1 tokens"),
        ({"uncached_tokens": 600, "route": "remote", "kv_bytes_moved": 9, "tokens_recomputed": 600}, "moved 9 bytes of KV and recomputed 600 tokens"),
        ({"uncached_tokens": 5, "route": "remote"}, "was served remote, not local"),
        ({"uncached_tokens": 5, "route": "local"}, None),
    ],
)  # fmt: skip
def test_the_demo_sees_what_is_wrong(story: dict[str, object], expected: str | None) -> None:
    """Zero bytes on an offloaded request is an error, never silence."""
    assert Served("a", story, 600, 16, 0.1).problem(512) == expected
    assert Served("a", story, 600, 0, 0.1).problem(512) is not None


def test_prompts_of_the_demo_differ_from_their_first_byte() -> None:
    """So that no prefix cache can answer for the network."""
    assert len(prompt_of(1900, 7)) == 1900
    assert prompt_of(100, 0x1234)[:4] != prompt_of(100, 0x4321)[:4]


def test_every_option_is_in_the_docs() -> None:
    """In docs/cli.md, in the section of its command, those of a group too. Those with a counterpart (`--a/--no-a`) by
    the first."""
    text = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
    parts = text.split("\n## `prfaas ")[1:]
    sections = {
        name: part for part in parts for name in (part.split()[0].strip("`"), " ".join(part.split("`")[0].split()[:2]))
    }
    commands: dict[str, Any] = dict(get_command(app).commands)  # type: ignore[attr-defined]
    groups = {name: command for name, command in commands.items() if hasattr(command, "commands")}
    for name, group in groups.items():
        del commands[name]
        commands |= {f"{name} {inner}": command for inner, command in group.commands.items()}
    missing = [
        f"{name} {option.opts[0]}"
        for name, command in commands.items()
        for option in command.params
        if option.opts[0].startswith("--")
        and option.opts[0] not in (*SHARED, *re.findall(r"--[a-z-]+", sections.get(name, "")))
    ]
    assert not missing
