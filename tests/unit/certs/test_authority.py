"""Certificates carry what the lanes' handshake looks at, and say so."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from prfaas.certs.authority import BadAuthority, Pair, issue, make_authority, new_key
from prfaas.certs.describe import describe, is_valid_at
from prfaas.certs.files import certificate_path, key_path, write_pair

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
AUTHORITY = make_authority("test authority", now=NOW, days=30, key=new_key(), serial=7)


def issued(identity: str = "east", days: int = 10, now: datetime = NOW) -> Pair:
    return issue(AUTHORITY, "east", identity, now=now, days=days, key=new_key(), serial=8)


def test_an_authority_signs_nodes_and_nothing_else() -> None:
    """No authority below it, no lane with its own certificate."""
    extensions = AUTHORITY.certificate.extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value) == (True, x509.BasicConstraints(ca=True, path_length=0))
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.digital_signature) == (True, False)
    assert AUTHORITY.certificate.not_valid_after_utc == NOW + timedelta(days=30)
    assert AUTHORITY.certificate.serial_number == 7


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ("kv.example.com", x509.DNSName("kv.example.com")),
        ("spiffe://x/east", x509.UniformResourceIdentifier("spiffe://x/east")),
    ],
)
def test_a_certificate_carries_one_identity(identity: str, expected: x509.GeneralName) -> None:
    """And serves for both ends of a lane."""
    certificate = issued(identity).certificate
    certificate.verify_directly_issued_by(AUTHORITY.certificate)
    extensions = certificate.extensions
    assert list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == [expected]
    usages = {usage.dotted_string for usage in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value}
    assert usages == {"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"}
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_clocks_may_differ() -> None:
    """A certificate is good on a machine whose clock is behind."""
    certificate = issued().certificate
    assert is_valid_at(certificate, NOW - timedelta(minutes=59))
    assert not is_valid_at(certificate, NOW - timedelta(minutes=61))
    assert is_valid_at(certificate, NOW + timedelta(days=10))
    assert not is_valid_at(certificate, NOW + timedelta(days=10, seconds=1))


def test_no_certificate_outlives_its_authority() -> None:
    """It would be refused then, without anybody having been told."""
    assert issued(days=365).certificate.not_valid_after_utc == AUTHORITY.certificate.not_valid_after_utc
    with pytest.raises(BadAuthority, match="has expired on 2026-02-01"):
        issued(now=NOW + timedelta(days=31))


def test_a_name_may_be_longer_than_a_common_name() -> None:
    """That one is for people only."""
    pair = issue(AUTHORITY, "e" * 70, "east", now=NOW, days=1, key=new_key(), serial=9)
    assert pair.certificate.subject.rfc4514_string() == "CN=" + "e" * 64


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (timedelta(), "valid until  2026-01-12 03:04 UTC (10 days left)"),
        (timedelta(days=8, hours=1), "valid until  2026-01-12 03:04 UTC (1 day left)"),
        (timedelta(days=10), "valid until  2026-01-12 03:04 UTC (0 days left)"),
        (timedelta(days=13), "valid until  2026-01-12 03:04 UTC (EXPIRED 3 days ago)"),
        (-timedelta(days=1), "valid until  2026-01-12 03:04 UTC (NOT VALID before 2026-01-02 02:04 UTC)"),
    ],
)
def test_how_long_a_certificate_is_valid_is_said(later: timedelta, expected: str) -> None:
    """Before, during and after."""
    assert describe(issued().certificate, NOW + later)[-1] == expected


def test_who_it_is_is_said() -> None:
    """Subject, what is checked, issuer."""
    assert describe(issued("spiffe://x/east").certificate, NOW)[:3] == [
        "subject      CN=east", "names        URI spiffe://x/east", "issuer       CN=test authority",
    ]  # fmt: skip
    assert describe(AUTHORITY.certificate, NOW)[1] == "names        none"


def test_openssl_takes_both_ends(tmp_path: Path) -> None:
    """Mutual TLS 1.3 in memory, with OpenSSL's strictest checks."""
    now = datetime.now(UTC)
    authority = make_authority("test authority", now=now, days=1, key=new_key(), serial=1)
    write_pair(tmp_path, "ca", authority)
    contexts = []
    for number, protocol in enumerate((ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)):
        name = f"n{number}"
        write_pair(tmp_path, name, issue(authority, name, name, now=now, days=1, key=new_key(), serial=2 + number))
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(certificate_path(tmp_path, "ca"))
        context.load_cert_chain(certificate_path(tmp_path, name), key_path(tmp_path, name))
        contexts.append(context)
    forth, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts[0].wrap_bio(back, forth)
    server = contexts[1].wrap_bio(forth, back, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    client.do_handshake()
    server.do_handshake()
    shown = server.getpeercert()
    assert shown is not None
    assert shown["subjectAltName"] == (("DNS", "n0"),)
