"""`prfaas certs` writes files that are private, whole and where they are expected, or says why not."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner, Result

from prfaas.certs.authority import issue, make_authority, new_key
from prfaas.certs.files import read_authority, read_certificates, write_authority, write_pair
from prfaas.cli.main import app

EXAMPLE = Path(__file__).parents[3] / "examples" / "two-datacenters" / "deployment.yaml"


def certs(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["certs", *arguments])


def good(*arguments: str) -> str:
    """Status 0; returns standard output."""
    done = certs(*arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def refused(*arguments: str) -> str:
    """Status 2 and nothing on standard output; returns the message."""
    done = certs(*arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    return done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With an authority in it."""
    good("init", "--dir", str(tmp_path / "certs"))
    return tmp_path / "certs"


def identities(path: Path) -> list[str]:
    (certificate,) = read_certificates(path)
    return [name.value for name in certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_pair(folder: Path, name: str) -> bool:
    key = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
    return read_certificates(folder / f"{name}.pem")[0].public_key() == key.public_key()


def test_an_authority_in_one_command(folder: Path) -> None:
    """Ten years, and its key for nobody else."""
    assert {path.name: mode(path) for path in folder.iterdir()} == {"ca.pem": 0o644, "ca.key": 0o600}
    assert mode(folder) == 0o700
    left = read_authority(folder).certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=3649) < left <= timedelta(days=3650)


@pytest.mark.parametrize("left", ["ca.pem", "ca.key"])
def test_an_authority_is_never_replaced(folder: Path, left: str) -> None:
    """Every node would have to be told; also if only half of it is there."""
    (folder / ({"ca.pem", "ca.key"} - {left}).pop()).unlink()
    before = (folder / left).read_bytes()
    assert f"{folder / left} is there already" in refused("init", "--dir", str(folder))
    assert (folder / left).read_bytes() == before


def test_certificates_by_name(folder: Path) -> None:
    """One pair of files each; the name is what is checked."""
    told = good("issue", "west", "kv.east.example.com", "--dir", str(folder), "--days", "5")
    assert f"wrote {folder}/west.pem and {folder}/west.key for west, valid until " in told
    for name in ("west", "kv.east.example.com"):
        assert identities(folder / f"{name}.pem") == [name]
        assert is_pair(folder, name)
        assert (mode(folder / f"{name}.pem"), mode(folder / f"{name}.key")) == (0o644, 0o600)
        read_certificates(folder / f"{name}.pem")[0].verify_directly_issued_by(read_authority(folder).certificate)


def test_a_certificate_for_a_uri(folder: Path) -> None:
    """The name is only what the files are called."""
    good("issue", "west", "--uri", "spiffe://x/west", "--dir", str(folder))
    assert identities(folder / "west.pem") == ["spiffe://x/west"]


def test_certificates_for_a_deployment(folder: Path, tmp_path: Path) -> None:
    """One per cluster, with its identity, under its name."""
    file = tmp_path / "deployment.yaml"
    text = EXAMPLE.read_text(encoding="utf-8").replace("role: pd\n", "role: pd\n    identity: spiffe://x/east\n")
    file.write_text(text, encoding="utf-8")
    good("issue", "--deployment", str(file), "--dir", str(folder))
    assert identities(folder / "prfaas-west.pem") == ["prfaas-west"]
    assert identities(folder / "pd-east.pem") == ["spiffe://x/east"]


def test_issuing_again_replaces_whole_files(folder: Path) -> None:
    """Who has the old file open reads the old one to its end; nothing temporary is left."""
    good("issue", "west", "--dir", str(folder))
    with (folder / "west.key").open("rb") as old:
        before = (folder / "west.key").read_bytes()
        good("issue", "west", "--dir", str(folder))
        assert old.read() == before
    assert (folder / "west.key").read_bytes() != before
    assert is_pair(folder, "west")
    assert {path.name for path in folder.iterdir()} == {"ca.pem", "ca.key", "west.pem", "west.key"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_issuing_again_keeps_the_owner(folder: Path) -> None:
    """Root renews what a node reads as somebody else."""
    good("issue", "west", "--dir", str(folder))
    os.chown(folder / "west.key", 12345, 12345)
    good("issue", "west", "--dir", str(folder))
    assert ((folder / "west.key").stat().st_uid, mode(folder / "west.key")) == (12345, 0o600)
    assert (folder / "west.pem").stat().st_uid == os.geteuid()


def test_one_authority_may_follow_another(folder: Path, tmp_path: Path) -> None:
    """While both are in ca.pem, the one whose key is there signs."""
    good("init", "--dir", str(tmp_path / "old"))
    both = (tmp_path / "old" / "ca.pem").read_bytes() + (folder / "ca.pem").read_bytes()
    (folder / "ca.pem").write_bytes(both)
    good("issue", "west", "--dir", str(folder))
    read_certificates(folder / "west.pem")[0].verify_directly_issued_by(read_certificates(folder / "ca.pem")[1])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give either names or --deployment FILE"),
        (["west", "--deployment", str(EXAMPLE)], "give either names or --deployment FILE"),
        (["--deployment", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["a", "b", "--uri", "spiffe://x/y"], "--uri: goes with exactly one name"),
        (["--deployment", str(EXAMPLE), "--uri", "spiffe://x/y"], "--uri: goes with exactly one name"),
        (["a", "--uri", "east"], "--uri: 'east' is no URI; write for example spiffe://"),
        (["a", "--uri", "spiffe://a b"], "--uri: 'spiffe://a b' is neither"),
        (["../a"], "NAME: '../a' is neither a DNS name nor a URI"),
        (["spiffe://x/y"], "NAME: 'spiffe://x/y' is a URI; give the URI with --uri"),
        (["a", "--uri", ""], "--uri: '' is neither"),
        (["../a", "--uri", "spiffe://x/y"], "NAME: '../a' is neither"),
        (["west", "ca"], "ca: the authority's own files are called that"),
        (["a", "--days", "0"], "--days"),
    ],
)
def test_what_cannot_be_issued(folder: Path, arguments: list[str], expected: str) -> None:
    """Nothing is written, not even for the names that are good."""
    assert expected in refused("issue", *arguments, "--dir", str(folder))
    assert {path.name for path in folder.iterdir()} == {"ca.pem", "ca.key"}


def test_no_authority_no_certificate(tmp_path: Path) -> None:
    """The command that makes one is named."""
    message = refused("issue", "west", "--dir", str(tmp_path))
    assert message == f"{tmp_path}/ca.key: there is no authority; make one with 'prfaas certs init --dir {tmp_path}'\n"


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("ca.key", b"x", "not a private key in PEM without a password"),
        ("ca.pem", b"x", "no certificate in PEM; is this the right file?"),
        ("ca.pem", None, "has no certificate of the key"),
    ],
)
def test_a_broken_authority_is_refused(
    folder: Path, tmp_path: Path, file: str, content: bytes | None, expected: str
) -> None:
    """Rubbish, and two halves that do not belong together."""
    if content is None:
        good("init", "--dir", str(tmp_path / "other"))
        content = (tmp_path / "other" / file).read_bytes()
    (folder / file).write_bytes(content)
    message = refused("issue", "west", "--dir", str(folder))
    assert str(folder / file) in message
    assert expected in message


def test_an_authority_with_another_kind_of_key_is_refused(folder: Path) -> None:
    """`certs issue` is for authorities that `certs init` made."""
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = Ed25519PrivateKey.generate().private_bytes(pem, pkcs8, serialization.NoEncryption())
    (folder / "ca.key").write_bytes(key)
    assert "not an EC key" in refused("issue", "west", "--dir", str(folder))


def test_an_expired_authority_issues_nothing(tmp_path: Path) -> None:
    """It says since when."""
    past = datetime(2020, 1, 1, tzinfo=UTC)
    write_authority(tmp_path, make_authority("old", now=past, days=1, key=new_key(), serial=1))
    assert "the authority has expired on 2020-01-02" in refused("issue", "west", "--dir", str(tmp_path))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """One sentence, no traceback."""
    (tmp_path / "file").write_text("x")
    assert f"{tmp_path}/file: cannot be made: " in refused("init", "--dir", str(tmp_path / "file"))


def test_show(folder: Path) -> None:
    """Every certificate of every file."""
    good("issue", "west", "--dir", str(folder))
    told = good("show", str(folder / "ca.pem"), str(folder / "west.pem"))
    assert f"{folder}/ca.pem\n  subject      CN=PrfaaS lanes\n" in told
    assert "  names        DNS west\n  issuer       CN=PrfaaS lanes\n  valid until  " in told
    assert "(364 days left)" in told


def test_show_fails_if_a_certificate_has_expired(folder: Path) -> None:
    """So that monitoring needs no parser."""
    past = datetime(2020, 1, 1, tzinfo=UTC)
    authority = make_authority("old", now=past, days=10, key=new_key(), serial=1)
    write_pair(folder, "west", issue(authority, "west", "west", now=past, days=3, key=new_key(), serial=2))
    done = certs("show", str(folder / "west.pem"), str(folder / "ca.pem"))
    assert done.exit_code == 1
    assert "2020-01-04 00:00 UTC (EXPIRED " in done.stdout
    assert "CN=PrfaaS lanes" in done.stdout


def test_show_of_what_is_no_certificate(folder: Path) -> None:
    """A key is not one, and its content is not shown."""
    assert "ca.key: no certificate in PEM" in refused("show", str(folder / "ca.key"))
    assert "No such file" in refused("show", str(folder / "none.pem"))
