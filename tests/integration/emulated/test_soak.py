"""Hundreds of requests leave nothing behind: no descriptor, thread, task, lease, or entry of a table.

Short form of `python -m benchmarks.case_study.soak`, which also fits how memory grows. Counts are compared, not bytes.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator

import pytest

from prfaas.bench.e2e.plan import Planned
from prfaas.bench.e2e.sent import OK
from prfaas.gateway.upstream.clients import POOL_KEEPALIVE_S
from prfaas.testing.deployed import http, port_of
from prfaas.testing.emulated_site import EmulatedSite, emulated_document
from prfaas.testing.footprint import Footprint, footprints, grown
from prfaas.testing.node_pair import wait_until
from tests.integration.emulated.loads import WORKLOAD, entries, sent_to, waiting

STORIES, BLOCKS = 64, 256
#: Idle connections differ by a few; 300 requests would leave more behind than that.
SPARE = 10
#: Idle connections of the gateway's pool have been closed by then.
CALM_S = 1.5 * POOL_KEEPALIVE_S
#: Long ones go west, short ones are prefilled here.
LENGTHS = (200, 6_000, 1_000, 12_000)


@pytest.fixture(scope="module")
def site() -> Iterator[EmulatedSite]:
    """With small tables, so that they are full at once."""
    emulation = {"time_scale": 0.02, "cache_tokens": BLOCKS * 128}
    document = emulated_document(policy={"kind": "prfaas"}, emulation=emulation, workload=WORKLOAD)
    document["gateway"] |= {"stories": STORIES, "prefix_record_blocks": BLOCKS}
    with EmulatedSite(document) as site:
        yield site


@pytest.fixture(scope="module")
def before(site: EmulatedSite) -> dict[str, Footprint]:
    """After some requests of each way: what is made once is there. Idle connections have been closed."""
    sent = sent_to(site, [Planned(n, 0.0, LENGTHS[n % 4], 8) for n in range(1, 41)], prompt_seed=1)
    assert all(one.is_ok for one in sent), [one.line() for one in sent if not one.is_ok]
    settle(site)
    time.sleep(CALM_S)
    return footprints(site)


def settle(site: EmulatedSite) -> None:
    """Until nothing goes on."""
    site.wait_nothing_held()
    wait_until(lambda: not entries(site), 60.0)


def test_hundreds_of_requests_leave_nothing_behind(site: EmulatedSite, before: dict[str, Footprint]) -> None:
    """Answered ones, refused ones, wrong ones, and such whose clients leave."""
    requests = [Planned(n, 0.02 * n, LENGTHS[n % 4], 8) for n in range(1, 301)]
    sent = sent_to(site, requests, prompt_seed=2)
    assert {one.outcome for one in sent} == {OK}, [one.line() for one in sent if not one.is_ok]
    routes = {one.route for one in sent}
    assert len(routes) > 1, routes
    for number in range(10):
        leave(site, number)
    settle(site)
    # Idle connections of a pool are closed after a while; a leak is not.
    wait_until(lambda: not grown(before, footprints(site), SPARE), 90.0)
    assert waiting(site) == {}
    assert site.metric(site.gateway, "prfaas_gateway_entries", table="ended_stories") <= STORIES
    for name in site.members():
        assert site.metric(site.gateway, "prfaas_prefix_record_blocks", instance=name) <= BLOCKS


def leave(site: EmulatedSite, number: int) -> None:
    """Ask for a long answer and hang up without reading it."""
    prompt = ",".join(str((7 * number + place) % 256) for place in range(3_000))
    body = f'{{"model": "emulated", "prompt": [{prompt}], "max_tokens": 5000, "stream": true}}'.encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port_of(site.gateway)), timeout=30.0) as client:
        client.sendall(head + body)
        client.recv(1) if number % 2 else None


def test_a_leaked_landing_is_found(site: EmulatedSite, before: dict[str, Footprint]) -> None:
    """Reserved by nobody's request, and held by its lease."""
    node = site.instance("east-1").kvnode_url
    asked = {"transfer_id": "leaked", "num_prompt_tokens": 1_000, "token_digest": "0" * 64,
             "claim_secret": secrets.token_urlsafe(32), "lease_s": 300.0}  # fmt: skip
    http(f"{node}/v1/landings", asked)
    assert "num_held" in grown(before, footprints(site), SPARE)["kvnode-east-1"]
    http(f"{node}/v1/landings/leaked", method="DELETE")
    wait_until(lambda: not grown(before, footprints(site), SPARE), 90.0)


def test_a_leaked_descriptor_is_found(site: EmulatedSite, before: dict[str, Footprint]) -> None:
    """Connections that nobody closes."""
    few = [socket.create_connection(("127.0.0.1", port_of(site.gateway))) for _ in range(100)]
    try:
        wait_until(lambda: "num_descriptors" in grown(before, footprints(site), SPARE).get("gateway", {}), 60.0)
    finally:
        for one in few:
            one.close()
    wait_until(lambda: not grown(before, footprints(site), SPARE), 90.0)
