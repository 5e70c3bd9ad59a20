"""The `prfaas link` command: what a running `prfaas wan` emulates, and how to change it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Final

from prfaas.core.errors import PrfaasError
from prfaas.deployment.fronts import Address
from prfaas.wan.settings import BadSetting

TIMEOUT_S: Final = 10.0


class WanRefused(PrfaasError):
    """It answered an error; the text is its."""


class WanUnreachable(PrfaasError):
    """Nobody answers at its control."""


def settings_of(texts: Sequence[str]) -> dict[str, str | None]:
    """`bandwidth=10Gbps`, repeated; `none` is null. Raises BadSetting."""
    values: dict[str, str | None] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise BadSetting(f"{text!r} is not SETTING=VALUE; write for example bandwidth=10Gbps")
        if name in values:
            raise BadSetting(f"{name} is given twice; remove one")
        values[name] = None if value in ("none", "null") else value
    return values


def links(control: Address) -> list[dict[str, Any]]:
    """All of them."""
    found: list[dict[str, Any]] = _ask(control, "/links")["links"]
    return found


def change(control: Address, source: str, target: str, values: dict[str, str | None]) -> dict[str, Any]:
    """Set a link; what it is now."""
    return _ask(control, f"/links/{source}/{target}", values)


def shown(link: dict[str, Any]) -> str:
    """One line for people."""
    parts = [f"{link['from']} to {link['to']}:", str(link["bandwidth"] or "no limit"), f"rtt {link['rtt'] * 1e3:g} ms"]
    parts += [f"jitter {link['jitter'] * 1e3:g} ms"] if link["jitter"] else []
    parts += [f"{name} {link[name]:g}" for name in ("stalls_per_s", "stalls_per_mb", "flips_per_mb") if link[name]]
    parts += [f"CUT ({link['cut']})"] if link["cut"] else []
    parts.append(f"| now {link['bytes_per_s'] * 8e-6:.1f} Mbps, {link['connections']} connections,")
    parts.append(f"{link['queue_bytes'] / 1e6:.2f} MB wait, {link['carried_bytes'] / 1e6:.1f} MB carried")
    return " ".join(parts)


def _ask(control: Address, path: str, body: dict[str, str | None] | None = None) -> dict[str, Any]:
    url = f"http://{control[0]}:{control[1]}{path}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, method="GET" if body is None else "PATCH")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:  # noqa: S310  as above
            answer: dict[str, Any] = json.loads(reply.read())
            return answer
    except urllib.error.HTTPError as error:
        with error:
            raise WanRefused(_message(error.read(), error.code)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise WanUnreachable(f"no answer at {url}: {reason}; does 'prfaas wan' run?") from None


def _message(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}"
