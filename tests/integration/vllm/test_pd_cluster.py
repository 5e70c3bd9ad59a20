"""A PD cluster with one instance that prefills and two that decode, and a PrfaaS instance beside it, on real vLLM: every
policy kind is served, answers are exact on both ways, and kill -9 of any process fails no request and leaves nothing
held."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from prfaas.core.planning.plan import make_plan
from prfaas.scenario.build import build_scenario
from prfaas.testing.deployed import http as get
from prfaas.testing.node_pair import wait_until
from prfaas.testing.pd_site import DECODE, PREFILL, PRFAAS, Kill, PdSite
from prfaas.testing.site import MODEL_NAME, Answer
from tests.integration.vllm.exactness import NUM_TOKENS, Case, distance, make_case, plain_local, same_bits, worker_of

pytestmark = pytest.mark.vllm

SEED = 20_261_130
HANG_S = 120.0
#: What a killed gateway held is held so long.
LEASE_S = 8


@pytest.fixture(scope="module")
def site(models: Path) -> Iterator[PdSite]:
    """One for all; each test leaves it whole."""
    with PdSite("qwen3-next", models=models, transfer={"lease": f"{LEASE_S}s"}) as site:
        yield site


def prompt_case(site: PdSite, num_tokens: int, name: str) -> Case:
    return make_case(site, num_tokens, random.Random(f"{SEED} {name}"))


@pytest.fixture
def fixed_again(site: PdSite) -> Iterator[None]:
    """The policy that the file began with holds after the test."""
    before = site.document["policy"]
    yield
    take_policy(site, before)


def take_policy(site: PdSite, policy: dict[str, Any]) -> None:
    """Have the running gateway take a policy over from the file, if it is another."""
    if policy == site.document["policy"]:
        return
    site.document["policy"] = policy
    log_before = len(site.log("gateway"))
    site.rewrite()
    wait_until(lambda: f"policy {policy['kind']}" in site.log("gateway")[log_before:], HANG_S)


@pytest.mark.usefixtures("fixed_again")
@pytest.mark.parametrize(
    ("policy", "of_long", "of_short"),
    [
        ({"kind": "homogeneous"}, ("pd_prefill", "policy"), ("pd_prefill", "policy")),
        ({"kind": "naive"}, ("remote", "above_threshold"), ("remote", "above_threshold")),
        ({"kind": "prfaas"}, None, None),
        (
            {"kind": "fixed", "routing_threshold_tokens": 700},
            ("remote", "above_threshold"),
            ("pd_prefill", "below_threshold"),
        ),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else "",
)
def test_each_policy_kind_is_served(
    site: PdSite, policy: dict[str, Any], of_long: tuple[str, str] | None, of_short: tuple[str, str] | None
) -> None:
    """The running gateway takes the kind over from the file; each length goes its way, and its answer is exact. Which way
    is the cheapest depends on how fast this machine is just now: either of the two, and with what it was expected to
    take."""
    log_before = len(site.log("gateway"))
    take_policy(site, policy)
    for name, num_tokens, expected in (("long", site.long_tokens, of_long), ("short", site.short_tokens, of_short)):
        case = prompt_case(site, num_tokens, f"{policy['kind']} {name}")
        answer = site.ask(case.prompt, NUM_TOKENS - 1)
        story = site.story(answer)
        if expected is None:
            expected = {"remote": ("remote", "above_threshold")}.get(story["route"], ("pd_prefill", "below_threshold"))
            assert {option["kind"] for option in story["options"]} == {"remote", "pd_prefill"}, story
        assert (story["route"], story["reason"], story["fallback_reason"]) == (*expected, None), story
        assert story["tokens_loaded"] == num_tokens - 1, story
        assert distance(case, answer) == 0.0
    if policy["kind"] == "prfaas":
        planned = make_plan(build_scenario(site.file)).to_json()["routing_threshold_tokens"]
        assert f"begins at {planned} uncached tokens, as planned" in site.log("gateway")[log_before:]
        seen, _ = get(f"{site.gateway}/prfaas/scheduler")
        assert (seen["moves"], seen["threshold_tokens"], seen["num_lengths_seen"]) == (True, planned, 2)
        assert site.short_tokens < planned < site.long_tokens


# Kills


class VllmKill(Kill):
    """`phase`: prefilling (the prefill engine has the prompt and stands still), landed (the landing waits for its
    engine), answering (decode has loaded it and computes; the client has nothing yet)."""

    @property
    def route(self) -> str:
        return "pd_prefill" if self.instance == PREFILL else "remote"

    @property
    def prefill(self) -> str:
        return PREFILL if self.instance == PREFILL else PRFAAS


#: All nodes, which start again at once, and those engines that still have a part in the request. The whole matrix runs
#: on engines without a model: tests/integration/test_kill_matrix.py.
KILLS = [
    *(VllmKill("kvnode", name, phase) for name in (PRFAAS, PREFILL, "decode") for phase in ("prefilling", "landed")),
    VllmKill("kvnode", "decode", "answering"),
    VllmKill("engine", PREFILL, "prefilling"),
    VllmKill("engine", "decode", "landed"),
]
#: An engine takes most of a minute to start again.
MORE_KILLS = [VllmKill("engine", PRFAAS, "prefilling"), VllmKill("engine", "decode", "answering")]
EVERY_KILL = pytest.mark.skipif(not os.environ.get("PRFAAS_TEST_EVERY_KILL"), reason="set PRFAAS_TEST_EVERY_KILL=1")


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process stands still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def occupied(site: PdSite, instance: str) -> Iterator[None]:
    """An engine that computes one request at a time computes one, until the block ends or the engine does."""
    address = urlsplit(site.instance(instance).engine_url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=HANG_S)
    body = {"model": MODEL_NAME, "prompt": [1, 2, 3], "max_tokens": 2000, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    try:
        connection.getresponse().readline()
        yield
    finally:
        connection.close()


def loading_is_over_at(site: PdSite) -> str | None:
    """The decode instance whose engine runs a request, with no landing left at any node."""
    if site.landing_at("reserved", "receiving", "landed", "claimed"):
        return None
    urls = {name: site.instance(name).engine_url for name in DECODE}
    return next((name for name, url in urls.items() if site.metric(url, "vllm:num_requests_running")), None)


def ask_and_kill(site: PdSite, kill: VllmKill, case: Case, max_tokens: int) -> tuple[Answer, str]:
    """The case's answer through the gateway, with a kill at the phase; and the name of the process that is gone."""
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        if kill.phase == "prefilling":
            stack.enter_context(frozen(worker_of(site, f"engine-{kill.prefill}")))
        elif kill.phase == "landed":
            for name in DECODE:
                stack.enter_context(occupied(site, name))
        asked: Future[Answer] = pool.submit(site.ask, case.prompt, max_tokens)
        if kill.phase == "answering":
            decode = wait_until(lambda: loading_is_over_at(site), HANG_S)
        else:
            states = ("reserved", "receiving") if kill.phase == "prefilling" else ("landed",)
            decode = wait_until(lambda: site.landing_at(*states), HANG_S)
        victim = kill.victim(decode)
        site.kill(victim)
        stack.close()
        return asked.result(HANG_S), victim


def check_answer(site: PdSite, case: Case, answer: Answer, story: dict[str, Any]) -> None:
    """Its first tokens are exactly those of a run without a fault: of an offloaded one if decode loaded the landing, and
    of a local one if not."""
    first = Answer(answer.tokens[: NUM_TOKENS - 1], answer.logprobs[: NUM_TOKENS - 1], None)
    if distance(case, first) != 0.0:
        assert not story["tokens_loaded"], story
        local = plain_local(site, case, url=site.instance(story["decode_instance"]).engine_url)
        assert same_bits(first, local), story


@pytest.mark.parametrize("kill", [*KILLS, *(pytest.param(kill, marks=EVERY_KILL) for kill in MORE_KILLS)], ids=str)
def test_killed(site: PdSite, kill: VllmKill) -> None:
    """200; the answer is the one of a run without a fault on the way that the story tells; nothing held."""
    num_tokens = site.long_tokens if kill.route == "remote" else site.short_tokens
    case = prompt_case(site, num_tokens, str(kill))
    max_tokens = 400 if kill.phase == "answering" else NUM_TOKENS - 1
    answer, victim = ask_and_kill(site, kill, case, max_tokens)
    story = site.story(answer)
    print(f"{kill}: {story['route']} {story['decode_instance']} {story['fallback_detail']}")
    try:
        assert story["outcome"] == "ok", story
        check_answer(site, case, answer, story)
        if kill.instance != "decode" and kill.phase == "landed":
            assert (story["route"], story["fallback_reason"]) == (kill.route, None), story
    finally:
        site.restart(victim)
    site.wait_nothing_held()


def test_gateway_killed(site: PdSite) -> None:
    """Its clients lose their answers; the next gateway serves, and what the last one held is free in the end."""
    case = prompt_case(site, site.long_tokens, "gateway")
    with ThreadPoolExecutor(1) as pool, frozen(worker_of(site, f"engine-{PRFAAS}")):
        asked = pool.submit(site.ask, case.prompt, 1)
        wait_until(lambda: site.landing_at("reserved", "receiving"), HANG_S)
        site.kill("gateway")
        with pytest.raises(ConnectionError):
            asked.result(HANG_S)
    site.restart("gateway")
    site.wait_nothing_held()
    assert distance(case, site.ask(case.prompt, NUM_TOKENS - 1)) == 0.0
