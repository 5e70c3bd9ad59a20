"""Making certificates. Pure: keys, serial numbers and the time are arguments."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from prfaas.core.errors import PrfaasError
from prfaas.deployment.identity import is_uri

#: Clocks of other datacenters may be behind ours; their TLS refuses a certificate that begins in their future.
BACKDATED: Final = timedelta(hours=1)

#: RFC 5280: the longest common name.
_MAX_COMMON_NAME: Final = 64


class BadAuthority(PrfaasError):
    """An authority cannot sign; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Pair:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new key on P-256, which every TLS 1.3 library has."""
    return ec.generate_private_key(ec.SECP256R1())


def make_authority(name: str, *, now: datetime, days: int, key: ec.EllipticCurvePrivateKey, serial: int) -> Pair:
    """A self-signed authority that may sign nodes' certificates but no other authority. `now` has a time zone."""
    subject = _subject(name)
    builder = _builder(subject, subject, key, now, now + timedelta(days=days), serial)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return Pair(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: Pair, name: str, identity: str, *, now: datetime, days: int, key: ec.EllipticCurvePrivateKey, serial: int
) -> Pair:
    """A certificate for both ends of a lane. `name` is for people; `identity` is what is checked. It ends with its
    authority if that ends sooner. `now` has a time zone. Raises BadAuthority if the authority has ended."""
    end = authority.certificate.not_valid_after_utc
    if end <= now:
        raise BadAuthority(f"the authority has expired on {end:%Y-%m-%d}; make a new one in another folder")
    builder = _builder(
        _subject(name), authority.certificate.subject, key, now, min(now + timedelta(days=days), end), serial
    )
    alternative = x509.UniformResourceIdentifier(identity) if is_uri(identity) else x509.DNSName(identity)
    builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime, serial: int
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), serial, now - BACKDATED, end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_MAX_COMMON_NAME])])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
