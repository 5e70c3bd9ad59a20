"""The gateway gives an instance another duty by itself: real nodes, lanes and gateway; engines without a model."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from prfaas.core.control.rebalance import MIN_SEEN_LENGTHS
from prfaas.testing.deployed import endpoint, free_ports, http
from prfaas.testing.node_pair import wait_until
from prfaas.testing.pd_site import DECODE, PREFILL, FakePdSite, add_planning

pytestmark = pytest.mark.slow

SECOND = "east-p2"
NUM_CLIENTS = 8
HANG_S = 180.0


def make_convertible(document: dict[str, Any]) -> None:
    """Two instances prefill and two decode, of which each has one place."""
    add_planning(document)
    east = document["clusters"]["east"]
    east["endpoints"].append(endpoint(free_ports(3), name=SECOND, duty="prefill"))
    east["convertible"] = True
    east["decode"] = {"max_batch": 1, "step": "10ms"}
    document["policy"] = {"kind": "prfaas", "cool_down": "5s"}


class ConvertibleSite(FakePdSite):
    """Which way a prompt goes says nothing about whether it is ready."""

    def wait_ready(self) -> None:
        wait_until(self.lanes_are_up, HANG_S)
        wait_until(self.all_are_seen, HANG_S)


@pytest.fixture(scope="module")
def site() -> Iterator[FakePdSite]:
    with ConvertibleSite(transfer={"deadline": "120s"}, edit=make_convertible) as site:
        yield site


def scheduler(site: FakePdSite) -> dict[str, Any]:
    return dict(http(f"{site.gateway}/prfaas/scheduler")[0])


class Clients:
    """They ask until `stop`. An answer that is wrong, or none, is in `failures`."""

    def __init__(self, site: FakePdSite) -> None:
        self.failures: list[str] = []
        self.num_answers = 0
        self._site = site
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(NUM_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(HANG_S)

    def _ask(self) -> None:
        while not self._stopping.wait(0.02):
            try:
                self._site.complete(secrets.token_hex(self._site.long_tokens // 2), 4)
                self.num_answers += 1
            except Exception as error:
                self.failures.append(repr(error))


def test_decode_that_binds_gets_an_instance(site: FakePdSite) -> None:
    """Engines that decode stand still, so that their places are full for a minute; an instance that prefilled is drained,
    converted and decodes. No request fails, the metrics count it, and a file that is read again takes nothing back."""
    clients, more = Clients(site), None
    try:
        # The scheduler must have seen enough lengths first.
        wait_until(lambda: clients.num_answers > MIN_SEEN_LENGTHS, HANG_S)
        for name in DECODE:
            http(f"{site.instance(name).engine_url}/pause", {"at": "loaded"})
        converted = wait_until(lambda: done(site), HANG_S)
        assert converted["to_duty"] == "decode"
        assert converted["from_duty"] == "prefill"
        assert "decode in east is" in converted["why"]
        newcomer = converted["instance"]
        assert newcomer in (PREFILL, SECOND)
        assert site.members()[newcomer]["duty"] == "decode"
        # Those who wait for engines that stand still send nothing new.
        more = Clients(site)
        wait_until(lambda: more.num_answers > 20, HANG_S)
        for name in DECODE:
            http(f"{site.instance(name).engine_url}/pause", {"at": ""})
        before = clients.num_answers
        wait_until(lambda: clients.num_answers > before + 50, HANG_S)
        assert site.metric(site.gateway, "prfaas_conversions_total", cluster="east", duty="decode", outcome="done") == 1
        assert f"{newcomer} gets duty=decode instead of prefill" in site.log("gateway")
        site.hang_up()
        wait_until(lambda: "nothing of it changes what is served" in site.log("gateway"), HANG_S)
        assert site.members()[newcomer]["duty"] == "decode"
    finally:
        for name in DECODE:
            http(f"{site.instance(name).engine_url}/pause", {"at": ""})
        clients.stop()
        if more is not None:
            more.stop()
    assert more is not None
    assert clients.failures + more.failures == []
    site.wait_nothing_held()


def done(site: FakePdSite) -> dict[str, Any] | None:
    """A conversion that has ended well."""
    found = [c for c in scheduler(site)["conversions"] if c["phase"] == "done"]
    return found[0] if found else None
