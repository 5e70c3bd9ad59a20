"""Whatever dies, stalls or lies before decode starts: the client gets its answer, and nothing stays allocated."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from prfaas.core.wire.frames import HEADER_BYTES
from prfaas.testing.node_pair import wait_until
from prfaas.testing.site import Answer, Site, http
from tests.integration.vllm.by_hand import decode_by_hand, ship_by_hand
from tests.integration.vllm.exactness import Case, distance, make_case, offload, plain_local, same_bits, worker_of

pytestmark = pytest.mark.vllm

#: The site's transfer deadline; a request may wait for it once, then runs locally.
DEADLINE_S = 8.0
#: Slow enough that a fault hits the transfer in its middle: 2.4 MB take six seconds.
SLOW_BYTES_PER_S = 400_000.0


@pytest.fixture(scope="module")
def site(models: Path) -> Iterator[Site]:
    """One pair for all faults; each test leaves it whole."""
    transfer = {"deadline": f"{DEADLINE_S}s", "lease": "6s"}
    with Site("qwen3-next", models=models, transfer=transfer) as site:
        yield site


@pytest.fixture(autouse=True)
def healed(site: Site) -> Iterator[None]:
    """No fault outlives its test, and nothing is held when it ends."""
    site.proxy.heal()
    yield
    site.proxy.heal()
    site.wait_ready()
    site.wait_idle()


def in_background(site: Site, case: Case) -> Future[tuple[Answer, float]]:
    """Send the case; the future has the answer and how long it took."""

    def timed() -> tuple[Answer, float]:
        start_s = time.monotonic()
        return offload(site, case), time.monotonic() - start_s

    pool = ThreadPoolExecutor(1)
    future = pool.submit(timed)
    pool.shutdown(wait=False)
    return future


def wait_receiving(site: Site) -> None:
    """Wait until a landing is being written."""
    wait_until(lambda: site.metric(site.decode_node, "prfaas_landings", state="receiving") >= 1, 30.0)


def expect_fallback(site: Site, case: Case, future: Future[tuple[Answer, float]]) -> dict[str, Any]:
    """The answer is the local one, came by the local path, said why, and did not wait past the deadline."""
    answer, took_s = future.result(120)
    story = site.story(answer)
    assert same_bits(answer, plain_local(site, case))
    assert story["fallback_reason"], story
    assert story["route"] == "local"
    assert took_s < DEADLINE_S + 5.0, "hang-guard: the deadline, plus a local run on a busy machine"
    return story


def kill_group(site: Site, name: str) -> None:
    """kill -9, children and all."""
    os.killpg(site.supervisor.processes[name].pid, signal.SIGKILL)
    site.supervisor.processes[name].ended_told = True


def test_prefill_engine_killed_during_prefill(site: Site) -> None:
    """kill -9 in the middle of a prefill that is shipping already: the request runs locally."""
    case = make_case(site, 1900, random.Random(1))
    worker = worker_of(site, "engine-west-0")
    os.kill(worker, signal.SIGSTOP)  # freezes the prefill where it is, so that the kill cannot come too late
    future = in_background(site, case)
    wait_until(lambda: site.metric(site.decode_node, "prfaas_landings", state="reserved")
               + site.metric(site.decode_node, "prfaas_landings", state="receiving") >= 1, 30.0)  # fmt: skip
    kill_group(site, "engine-west-0")
    try:
        story = expect_fallback(site, case, future)
        # Either the broken connection tells the gateway, or the engine's node, which gives the transfer up.
        assert "prefill" in f"{story['fallback_reason']} {story['fallback_detail']}", story
        wait_until(lambda: site.holdings()["west arena bytes"] == 0, 30.0)
    finally:
        site.restart("engine-west-0")


@pytest.mark.parametrize("name", ["kvnode-west-0", "kvnode-east-0"])
def test_node_killed_during_transfer(site: Site, name: str) -> None:
    """kill -9 of either node while bytes flow: the request runs locally, and the engines find the new node."""
    case = make_case(site, 1900, random.Random(2))
    site.proxy.rate_bytes_per_s = SLOW_BYTES_PER_S
    future = in_background(site, case)
    wait_receiving(site)
    kill_group(site, name)
    try:
        expect_fallback(site, case, future)
    finally:
        site.proxy.heal()
        site.restart(name)


def test_link_stalls_half_way(site: Site) -> None:
    """A link that swallows bytes without a word is noticed, and both ends are freed."""
    case = make_case(site, 1900, random.Random(3))
    site.proxy.bytes_forward = 0
    site.proxy.stall_after_bytes = 1_000_000
    expect_fallback(site, case, in_background(site, case))
    wait_until(lambda: site.holdings()["west arena bytes"] == 0, 30.0)
    site.proxy.heal()
    site.proxy.cut()


def test_link_too_slow_for_the_deadline(site: Site) -> None:
    """A transfer that would take longer is given up at its deadline."""
    case = make_case(site, 1900, random.Random(4))
    # Slower still, and loopback's 64 KiB segments leave a lane of four without a sign of life for seconds.
    site.proxy.rate_bytes_per_s = 200_000.0
    story = expect_fallback(site, case, in_background(site, case))
    # Whichever of gateway and sending node looks first at its clock gives it up.
    assert "deadline" in f"{story['fallback_reason']} {story['fallback_detail']}", story
    site.proxy.cut()


def test_lease_runs_out(site: Site) -> None:
    """A landing that nobody claims expires, and a decode that comes too late computes the prompt itself."""
    case = make_case(site, 900, random.Random(5))
    transfer_id = ship_by_hand(site, case.prompt, lease_s=0.5)
    record, _ = http(f"{site.decode_node}/v1/landings/{transfer_id}?wait_s=20&until=final")
    assert record["state"] == "expired"
    answer = decode_by_hand(site, case.prompt, transfer_id)
    assert same_bits(answer, plain_local(site, case))
    record, _ = http(f"{site.decode_node}/v1/landings/{transfer_id}")
    assert (record["state"], record["tokens_loaded"]) == ("expired", 0)


def test_one_flipped_bit_on_the_wire(site: Site) -> None:
    """It is noticed, sent again, and the answer is exact."""
    case = make_case(site, 1900, random.Random(6))
    site.proxy.flips_left = 1
    answer = offload(site, case)
    noticed = site.metric(site.decode_node, "prfaas_chunk_checksum_failures_total")
    rejected = site.metric(site.decode_node, "prfaas_frames_rejected_total")
    assert site.proxy.flips_left == 0
    assert noticed + rejected >= 1
    assert site.story(answer)["route"] == "remote"
    assert distance(case, answer) == 0.0


def test_lanes_cut_and_back(site: Site) -> None:
    """Every lane reset in mid-transfer: the lanes come back, the rest is sent, the answer is exact."""
    case = make_case(site, 1900, random.Random(7))
    site.proxy.rate_bytes_per_s = SLOW_BYTES_PER_S * 2
    future = in_background(site, case)
    wait_receiving(site)
    site.proxy.cut()
    answer, _ = future.result(120)
    assert site.story(answer)["route"] == "remote"
    assert distance(case, answer) == 0.0


def test_no_link_at_all(site: Site) -> None:
    """With the prefill side's node down from the start, requests are served locally."""
    case = make_case(site, 900, random.Random(8))
    kill_group(site, "kvnode-west-0")
    answer = offload(site, case)
    assert same_bits(answer, plain_local(site, case))
    assert site.story(answer)["route"] == "local"
    site.restart("kvnode-west-0")


def test_clients_that_leave_at_any_moment(site: Site) -> None:
    """Forty requests dropped at random moments strand nothing on either side."""
    rng = random.Random(9)
    prompts = [[rng.randrange(256) for _ in range(rng.randrange(300, 1900))] for _ in range(40)]

    def drop(prompt: list[int], after_s: float) -> None:
        body = site_body(prompt)
        address = urlsplit(site.gateway)
        with socket.create_connection((str(address.hostname), int(address.port or 80))) as sock:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            sock.sendall(head.encode() + body)
            sock.settimeout(after_s)
            with contextlib.suppress(TimeoutError):
                sock.recv(1)

    threads = [threading.Thread(target=drop, args=(prompt, rng.random() * 0.4)) for prompt in prompts]
    for group in range(0, len(threads), 8):
        for thread in threads[group : group + 8]:
            thread.start()
        for thread in threads[group : group + 8]:
            thread.join()
    site.wait_idle()
    case = make_case(site, 900, rng)
    assert distance(case, offload(site, case)) == 0.0


def site_body(prompt: list[int]) -> bytes:
    """A completion long enough to be dropped in its middle."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 60, "stream": True, "ignore_eos": True}
    return json.dumps(body).encode()


def test_garbage_on_the_lanes_port(site: Site, record_property: Callable[[str, object], None]) -> None:
    """Noise on a real node's port costs it neither memory nor its peers."""
    pid = site.supervisor.processes["kvnode-east-0"].pid
    rng = random.Random(10)
    host, port = site.proxy.target

    def throw(count: int) -> None:
        for _ in range(count):
            with socket.create_connection((host, port)) as sock, contextlib.suppress(OSError):
                sock.sendall(rng.randbytes(rng.randrange(1, 4 * HEADER_BYTES)))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass

    throw(500)
    before_kib = _resident_kib(pid)
    throw(2000)
    grown_kib = _resident_kib(pid) - before_kib
    record_property("grown_kib", grown_kib)
    assert grown_kib < 8 * 1024
    case = make_case(site, 600, rng)
    assert distance(case, offload(site, case)) == 0.0


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])
