"""kill -9 of every kind of process at every phase of a request that is prefilled elsewhere: the client gets its answer,
and nothing stays held. With the only gateway the client loses its answer too, and still nothing stays held. Nodes and
gateway are real processes; engines are processes without a model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from prfaas.testing.fake_engine import answer_text
from prfaas.testing.node_pair import wait_until
from prfaas.testing.pd_site import DECODE, PREFILL, PRFAAS, FakePdSite, Kill

pytestmark = pytest.mark.slow

SEED = 20_261_125
NUM_TOKENS = 6
HANG_S = 60.0
#: What a killed gateway held is held so long.
LEASE_S = 6
#: Where a request is stopped, see `testing.node_engine`; before: it is sent after the kill.
PHASES = ("before", "half", "landed", "loaded")


class MatrixKill(Kill):
    """Half of the kills of decode are on the route `remote`, half on `pd_prefill`."""

    @property
    def route(self) -> str:
        is_pd = self.instance == PREFILL or (self.instance == "decode" and self.phase in ("half", "loaded"))
        return "pd_prefill" if is_pd else "remote"

    @property
    def hurts(self) -> bool:
        """Whether the victim still has a part in the request: a prefill side has none once the image has landed. The
        node beside the decode engine has one to the end: with it goes the proof of what was loaded."""
        return self.instance == "decode" or self.phase in ("before", "half")


KILLS = [
    *(
        MatrixKill(kind, instance, phase)
        for instance in (PRFAAS, PREFILL, "decode")
        for kind in ("engine", "kvnode")
        for phase in PHASES
    ),
    MatrixKill("engine", "decode", "claimed"),
    MatrixKill("kvnode", "decode", "claimed"),
]


@pytest.fixture(scope="module")
def site() -> Iterator[FakePdSite]:
    with FakePdSite(transfer={"lease": f"{LEASE_S}s"}) as site:
        yield site


def paused_at(site: FakePdSite) -> str | None:
    """Instance whose engine has stopped a request."""
    return next((name for name in (PRFAAS, PREFILL, *DECODE) if site.engine_state(name)["paused"]), None)


def make_prompt(length: int, rng: random.Random) -> str:
    return "".join(rng.choice("abcdefgh") for _ in range(length))


@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_killed(site: FakePdSite, kill: MatrixKill) -> None:
    """200 and the right answer; a story that says what happened; nothing held."""
    length = site.long_tokens if kill.route == "remote" else site.short_tokens
    prompt = make_prompt(length, random.Random(f"{SEED} {kill}"))
    victim = kill.victim(DECODE[0])
    try:
        with ThreadPoolExecutor(1) as pool:
            if kill.phase == "before":
                site.kill(victim)
                asked: Future[tuple[str, str]] = pool.submit(site.complete, prompt, NUM_TOKENS)
            else:
                site.pause(kill.phase)
                asked = pool.submit(site.complete, prompt, NUM_TOKENS)
                victim = kill.victim(wait_decode(site, kill))
                site.kill(victim)
                site.pause("")
            text, request_id = asked.result(HANG_S)
        story = site.story_of(request_id)
        print(f"{kill}: {story['route']} {story['reason']} {story['fallback_detail']}")
        assert text == answer_text(prompt, NUM_TOKENS), story
        assert story["outcome"] == "ok", story
        if kill.hurts and kill.phase != "before":  # a probe may have seen it before
            assert story["fallback_reason"] or not story["tokens_loaded"], story
        if not kill.hurts:
            assert (story["route"], story["tokens_loaded"]) == (kill.route, length - 1), story
        site.wait_nothing_held()
    finally:
        site.pause("")
        site.restart(victim)
    site.wait_nothing_held()


def wait_decode(site: FakePdSite, kill: MatrixKill) -> str:
    """Wait until a request has stopped at the phase; the instance that decodes it."""
    stopped = wait_until(lambda: paused_at(site), HANG_S)
    if kill.phase != "half":
        assert stopped in DECODE
        return stopped
    assert stopped == (PRFAAS if kill.route == "remote" else PREFILL)
    return wait_until(lambda: site.landing_at("reserved", "receiving"), HANG_S)


@pytest.mark.parametrize("phase", [phase for phase in (*PHASES, "claimed") if phase != "before"])
def test_gateway_killed(site: FakePdSite, phase: str) -> None:
    """Its client gets no answer. What it held beside others is free in the end, and the next one serves."""
    prompt = make_prompt(site.long_tokens, random.Random(f"{SEED} gateway {phase}"))
    try:
        with ThreadPoolExecutor(1) as pool:
            site.pause(phase)
            asked = pool.submit(site.complete, prompt, NUM_TOKENS)
            wait_until(lambda: paused_at(site), HANG_S)
            site.kill("gateway")
            site.pause("")
            with pytest.raises(ConnectionError):
                asked.result(HANG_S)
    finally:
        site.pause("")
        site.restart("gateway")
    site.wait_nothing_held()
