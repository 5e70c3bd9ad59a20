"""Duties that were given while the gateway runs, and the file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prfaas.core.topology import Cluster, Duty, Instance, Role, Topology
from prfaas.gateway.membership import keep_given_duties

CLUSTER = Cluster("pd", Role.PD, is_convertible=True)


def topology(*duties: str, cluster: Cluster = CLUSTER, **urls: str) -> Topology:
    """Instances `a`, `b`, `c` with these duties."""
    members = (
        Instance(name, "pd", Duty(duty), urls.get(name, name), f"node-{name}", f"{name}:1")
        for name, duty in zip("abc", duties, strict=True)
    )
    return Topology((cluster,), tuple(members), ())


WRITTEN = topology("prefill", "decode", "decode")
GIVEN = topology("prefill", "decode", "prefill")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (WRITTEN, "prefill decode prefill"),
        (topology("decode", "decode", "decode"), "decode decode prefill"),
        (topology("prefill", "decode", "both"), "prefill decode both"),
        (topology("prefill", "decode", "decode", c="elsewhere"), "prefill decode decode"),
        (topology("prefill", "prefill", "decode"), "prefill prefill decode"),
        (topology("prefill", "decode", "decode", cluster=replace(CLUSTER, is_convertible=False)),
         "prefill decode decode"),
    ],
    ids=["the same", "another changes", "a new duty", "it moves", "nothing would decode", "no more convertible"],
)  # fmt: skip
def test_the_file_changes_what_it_says_anew(written: Topology, expected: str) -> None:
    """An instance of which it says the same as before keeps the duty that it was given since."""
    kept = keep_given_duties(WRITTEN, GIVEN, written)
    assert " ".join(member.duty for member in kept.instances) == expected


def test_duties_are_given_again_in_an_order_that_is_possible() -> None:
    """Two came to prefill and the third to decode: somebody decodes after every step."""
    written, given = topology("decode", "decode", "prefill"), topology("prefill", "prefill", "decode")
    assert keep_given_duties(written, given, written) == given
