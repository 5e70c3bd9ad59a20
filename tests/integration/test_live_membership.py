"""Instances come, go and are converted while requests run, and no request fails. Nodes and gateway are real processes;
engines are processes without a model."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from prfaas.testing.deployed import endpoint, free_ports, http
from prfaas.testing.fake_engine import answer_text
from prfaas.testing.node_pair import wait_until
from prfaas.testing.pd_site import DECODE, PREFILL, FakePdSite

pytestmark = pytest.mark.slow

SEED = 20_261_125
NUM_CLIENTS = 4
#: Between two requests of one client: this is a test of changes, not of speed.
PAUSE_S = 0.02
HANG_S = 60.0
NEW = "east-d3"


@dataclass
class Load:
    """Clients that ask all the time until `stop`, half of them short prompts and half long ones. `stories` are of
    answered requests, each with `sent_s` and `length`."""

    site: FakePdSite
    stories: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(NUM_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(HANG_S)

    def _client(self, number: int) -> None:
        rng = random.Random(f"{SEED} {number}")
        while not self._stopping.is_set():
            length = rng.choice((self.site.short_tokens, self.site.long_tokens))
            self._ask("".join(rng.choice("abcdefgh") for _ in range(length)))
            self._stopping.wait(PAUSE_S)

    def _ask(self, prompt: str) -> None:
        sent_s = time.monotonic()
        try:
            text, request_id = self.site.complete(prompt, 4)
            story = self.site.story_of(request_id)
        except Exception as error:
            self.failures.append(repr(error))
            return
        if text != answer_text(prompt, 4) or story["outcome"] != "ok":
            self.failures.append(f"{text}: {story}")
        self.stories.append({**story, "sent_s": sent_s, "length": len(prompt)})

    def since(self, moment_s: float) -> list[dict[str, Any]]:
        """Of requests that were sent after it."""
        return [story for story in list(self.stories) if story["sent_s"] > moment_s]

    def see(self, what: Callable[[dict[str, Any]], bool], count: int = 1) -> None:
        """Wait for so many requests from now on of which `what` is true."""
        from_s = time.monotonic()
        try:
            wait_until(lambda: sum(map(what, self.since(from_s))) >= count, HANG_S)
        except TimeoutError:
            raise AssertionError(f"not seen: {self.since(from_s)[-3:]}, failures {self.failures[-3:]}") from None


@pytest.fixture(scope="module")
def site() -> Iterator[FakePdSite]:
    with FakePdSite() as site:
        yield site


@pytest.fixture
def load(site: FakePdSite) -> Iterator[Load]:
    """It runs through the whole test; then no request has failed, and nothing is held."""
    load = Load(site)
    load.start()
    load.see(lambda story: story["route"] == "remote", 5)
    yield load
    load.stop()
    assert load.failures == []
    print(
        f"{len(load.stories)} requests, {sum(story['fallback_reason'] is not None for story in load.stories)} fell back"
    )
    site.wait_nothing_held()


def endpoints(site: FakePdSite) -> list[dict[str, str]]:
    """Those of the PD cluster, to be changed."""
    found: list[dict[str, str]] = site.document["clusters"]["east"]["endpoints"]
    return found


def test_an_instance_comes_and_another_goes(site: FakePdSite, load: Load) -> None:
    """The new one is used when it works; the old one ends what it has, is shown as leaving, gets nothing more, and can
    be stopped."""
    endpoints(site).append(endpoint(free_ports(3), name=NEW, duty="decode"))
    site.rewrite()
    wait_until(lambda: NEW in site.members(), HANG_S)
    assert not site.members()[NEW]["engine"], "nobody has started it"
    load.see(lambda story: True, 10)
    site.specs = site.plan()
    site.supervisor.start([site.specs[f"kvnode-{NEW}"], site.specs[f"engine-{NEW}"]])
    for route in ("remote", "pd_prefill"):
        load.see(lambda story, route=route: (story["decode_instance"], story["route"]) == (NEW, route), 3)  # type: ignore[misc]

    leaving = DECODE[0]
    old = site.instance(leaving)
    http(f"{old.engine_url}/pause", {"at": "loaded"})
    wait_until(lambda: http(f"{old.engine_url}/state")[0]["paused"], HANG_S)
    site.document["clusters"]["east"]["endpoints"] = [e for e in endpoints(site) if e["name"] != leaving]
    site.rewrite()
    shown = wait_until(lambda: m if (m := site.members()[leaving])["leaving"] else None, HANG_S)
    gone_s = time.monotonic()
    assert shown["inflight"] >= 1
    load.see(lambda story: story["decode_instance"] != leaving, 20)
    assert leaving in site.members(), "it has not answered yet"
    http(f"{old.engine_url}/pause", {"at": ""})
    wait_until(lambda: leaving not in site.members(), HANG_S)
    legs = http(f"{old.engine_url}/state")[0]["legs"]
    load.see(lambda story: True, 20)
    assert http(f"{old.engine_url}/state")[0]["legs"] == legs
    assert site.end(f"kvnode-{leaving}") == 0
    site.end(f"engine-{leaving}")
    load.see(lambda story: True, 20)
    assert {story["decode_instance"] for story in load.since(gone_s)} == {DECODE[1], NEW}
    assert [story for story in load.stories if story["fallback_reason"]] == []


def test_a_duty_is_converted(site: FakePdSite, load: Load) -> None:
    """A decode instance that is `both` computes its own short prompts; the prefill instance, converted, decodes."""
    (second,) = (e for e in endpoints(site) if e["name"] == DECODE[1])
    second["duty"] = "both"
    site.rewrite()
    wait_until(lambda: site.members()[DECODE[1]]["duty"] == "both", HANG_S)
    own = ("local", "below_threshold", DECODE[1])
    load.see(lambda story: (story["route"], story["reason"], story["decode_instance"]) == own, 5)
    (prefill,) = (e for e in endpoints(site) if e["name"] == PREFILL)
    prefill["duty"] = "decode"
    site.rewrite()
    load.see(lambda story: story["decode_instance"] == PREFILL, 5)
    load.see(lambda story: (story["decode_instance"], story["route"]) == (PREFILL, "remote"), 3)
    prefill["duty"], second["duty"] = "prefill", "decode"
    site.rewrite()
    load.see(lambda story: story["prefill_instance"] == PREFILL, 5)


def test_a_broken_file_changes_nothing(site: FakePdSite, load: Load) -> None:
    """Logs and metrics say so; when the file is repaired, nothing has changed either."""
    node = site.instance(PREFILL).kvnode_url

    def refused() -> list[float]:
        gateway = site.metric(site.gateway, "prfaas_gateway_deployment_refused")
        return [gateway, site.metric(node, "prfaas_node_deployment_refused")]

    before = {name: member["duty"] for name, member in site.members().items()}
    site.write("clusters: {")
    site.hang_up()
    wait_until(lambda: "the deployment file is refused" in site.log("gateway"), HANG_S)
    load.see(lambda story: story["route"] == "remote", 5)
    load.see(lambda story: story["route"] == "pd_prefill", 5)
    assert {name: member["duty"] for name, member in site.members().items()} == before
    site.write(yaml.safe_dump({**site.document, "surprise": 1}))
    site.hang_up()
    wait_until(lambda: "surprise" in site.log("gateway"), HANG_S)
    wait_until(lambda: all(refused()), HANG_S)
    site.rewrite()
    wait_until(lambda: "nothing of it changes what is served" in site.log("gateway"), HANG_S)
    wait_until(lambda: not any(refused()), HANG_S)
    load.see(lambda story: story["route"] == "remote", 5)
    assert {name: member["duty"] for name, member in site.members().items()} == before
