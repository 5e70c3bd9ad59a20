"""A certificate in words. Pure: the time is an argument."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from cryptography import x509

_SECONDS_PER_DAY: Final = 86_400


def describe(certificate: x509.Certificate, now: datetime) -> list[str]:
    """One line per thing that a person asks for. `now` has a time zone."""
    rows = [
        ("subject", certificate.subject.rfc4514_string() or "none"),
        ("names", ", ".join(_alternative_names(certificate)) or "none"),
        ("issuer", certificate.issuer.rfc4514_string() or "none"),
        ("valid until", f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC ({_left(certificate, now)})"),
    ]
    return [f"{title:<12} {text}" for title, text in rows]


def is_valid_at(certificate: x509.Certificate, now: datetime) -> bool:
    """Would TLS take its dates?"""
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _left(certificate: x509.Certificate, now: datetime) -> str:
    if now < certificate.not_valid_before_utc:
        return f"NOT VALID before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    seconds = (certificate.not_valid_after_utc - now).total_seconds()
    days = int(abs(seconds) // _SECONDS_PER_DAY)
    return f"{_days(days)} left" if seconds >= 0 else f"EXPIRED {_days(days)} ago"


def _days(count: int) -> str:
    return "1 day" if count == 1 else f"{count} days"


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except ValueError:
        return ["not readable"]
    kinds = {x509.DNSName: "DNS", x509.UniformResourceIdentifier: "URI"}
    return [f"{kinds.get(type(name), type(name).__name__)} {name.value}" for name in names]
