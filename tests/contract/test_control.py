"""The HTTP control of a KV node, on the real process and on the fake alike."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
import pytest

from prfaas.core.errors import Refused
from prfaas.core.wire.engine import Consumed, Declined
from prfaas.core.wire.node_api import VERSION, VERSION_HEADER
from prfaas.testing.node_pair import wait_until
from tests.contract.nodes import LAYOUT, SECRET, Nodes, arena, claim, engine, reservation


def test_health_tells_engines_with_their_kinds_of_cache(pair: Nodes) -> None:
    """And the peers, and how much of the arena is free."""
    health = pair.ask("GET", "/health").body
    assert health["status"] == "ok"
    assert health["node"] == "sink-0"
    assert health["arena_free_bytes"] <= health["arena_bytes"]
    assert health["engines"] == [
        {
            "engine_id": "decode",
            "engine_boot_id": "decode",
            "fingerprint": LAYOUT.fingerprint,
            "block_tokens": 4,
            "max_model_tokens": LAYOUT.max_model_tokens,
            "kv_group_kinds": ["full_attention"],
        }
    ]
    peers = pair.ask("GET", "/health", url=pair.source[0]).body["peers"]
    assert peers == {"sink-0": {"lanes_up": 4, "error": None}}


def test_a_landing_from_reservation_to_consumption(pair: Nodes) -> None:
    """Every state is told, the engine finds the very bytes, and the final record says what it did with them."""
    transfer_id = pair.new_id()
    reserved = pair.reserve(transfer_id)
    assert {name: value for name, value in reserved.items() if name != "token"} == {
        "transfer_id": transfer_id,
        "node": "sink-0",
        "num_bytes": 99 * 64,
        "block_tokens": 4,
        "engine_boot_id": "decode",
        "fingerprint": LAYOUT.fingerprint,
        "kv_group_kinds": ["full_attention"],
    }
    assert pair.record(transfer_id)["state"] == "reserved"
    image = pair.ship(transfer_id, reserved)
    landed = pair.record(transfer_id, "?wait_s=30&until=landed")
    assert (landed["state"], landed["bytes_landed"], landed["tokens_loaded"]) == ("landed", 99 * 64, None)
    claimed = pair.decode.claim(claim(transfer_id))
    assert claimed.num_bytes == len(image)
    with arena(pair.decode) as memory:
        assert bytes(memory[claimed.arena_offset : claimed.arena_offset + claimed.num_bytes]) == image
    assert pair.record(transfer_id)["state"] == "claimed"
    assert pair.decode.consumed(Consumed(transfer_id=transfer_id, loaded=99, recomputed=1)).valid
    record = pair.record(transfer_id, "?wait_s=30&until=final")
    assert (record["state"], record["reason"]) == ("consumed", None)
    assert (record["tokens_loaded"], record["tokens_recomputed"]) == (99, 1)
    assert record.keys() == {
        "transfer_id", "state", "reason", "num_bytes", "bytes_landed", "num_prompt_tokens", "skip_tokens",
        "tokens_loaded", "tokens_recomputed", "bytes_resent", "landed_after_s",
    }  # fmt: skip
    sent = wait_until(lambda: _ended(pair, transfer_id))
    assert (sent["state"], sent["bytes_acked"]) == ("committed", len(image))
    assert not pair.decode.consumed(Consumed(transfer_id=transfer_id, loaded=99, recomputed=1)).valid


def _ended(pair: Nodes, transfer_id: str) -> Any:
    record = pair.ask("GET", f"/v1/transfers/{transfer_id}", url=pair.source[0]).body
    return record if record["state"] in ("committed", "aborted") else None


def test_a_poll_wakes_when_the_landing_changes(pair: Nodes) -> None:
    """Long before its wait is over."""
    transfer_id = pair.new_id()
    reserved = pair.reserve(transfer_id)
    found: list[Any] = []
    began_s = time.monotonic()
    waiting = threading.Thread(target=lambda: found.append(pair.record(transfer_id, "?wait_s=60&until=landed")))
    waiting.start()
    pair.ship(transfer_id, reserved)
    waiting.join(60)
    assert found[0]["state"] == "landed"
    assert time.monotonic() - began_s < 60, "it did not wait to the end"
    assert pair.record(transfer_id, "?wait_s=0.01&until=final")["state"] == "landed", "nor does one wait for ever"


def test_a_lease_runs_out_unless_it_is_renewed(pair: Nodes) -> None:
    """An expired landing tells so, and cannot be loaded."""
    kept, left = pair.new_id(), pair.new_id()
    for transfer_id in (kept, left):
        pair.reserve(transfer_id, lease_s=0.3)
    renewed = pair.ask("POST", f"/v1/landings/{kept}/renew", {"lease_s": 60.0})
    assert (renewed.status, renewed.body["state"]) == (200, "reserved")
    assert pair.record(left, "?wait_s=30&until=final")["state"] == "expired"
    assert pair.record(kept)["state"] == "reserved"
    assert pair.ask("DELETE", f"/v1/landings/{kept}").body["state"] == "aborted"


def test_a_dropped_landing_is_over(pair: Nodes) -> None:
    """Its record stays, its id is not free, and its sender is turned away."""
    transfer_id = pair.new_id()
    reserved = pair.reserve(transfer_id)
    dropped = pair.ask("DELETE", f"/v1/landings/{transfer_id}")
    assert (dropped.status, dropped.body["state"], dropped.body["reason"]) == (
        200,
        "aborted",
        "released by the gateway",
    )
    assert pair.record(transfer_id)["state"] == "aborted"
    again = pair.ask("POST", "/v1/landings", reservation(transfer_id))
    assert (again.status, again.error[0]) == (409, "exists")
    pair.ship(transfer_id, reserved)
    sent = wait_until(lambda: _ended(pair, transfer_id))
    assert sent["state"] == "aborted"
    assert "unknown_landing" in sent["reason"]


def test_a_wrong_token_lands_nothing(pair: Nodes) -> None:
    """Whoever knows only the id may not write."""
    transfer_id = pair.new_id()
    pair.ship(transfer_id, {**pair.reserve(transfer_id), "token": "a guess of enough characters"})
    assert "unknown_landing" in wait_until(lambda: _ended(pair, transfer_id))["reason"]
    assert pair.record(transfer_id)["state"] == "reserved"
    pair.ask("DELETE", f"/v1/landings/{transfer_id}")


def test_links_tell_lanes_and_verdict(pair: Nodes) -> None:
    """By peer; a poll for a change that does not come answers at its end."""
    links = pair.ask("GET", "/v1/links", url=pair.source[0]).body
    assert links["node"] == "source-0"
    assert links["links"]["sink-0"]["lanes_up"] == 4
    assert links["links"]["sink-0"]["verdict"] in ("clear", "pressed", "congested")
    later = pair.ask("GET", f"/v1/links?after={links['changes']}&wait_s=0.01", url=pair.source[0])
    assert later.status == 200
    assert pair.ask("GET", "/v1/links").body["links"] == {}


def test_metrics_are_there(pair: Nodes) -> None:
    """In Prometheus' text."""
    assert "prfaas_landings" in pair.ask("GET", "/metrics").body


GOOD = reservation("good")

#: (request, status, code, words of the message)
REFUSALS: list[tuple[dict[str, Any], int, str, str]] = [
    ({"body": {**GOOD, "unknown": 1}}, 400, "bad_request", "Reservation: Object contains unknown field `unknown`"),
    *(
        ({"body": {k: v for k, v in GOOD.items() if k != name}}, 400, "bad_request", f"required field `{name}`")
        for name in ("transfer_id", "num_prompt_tokens", "token_digest", "claim_secret")
    ),
    ({"body": {**GOOD, "num_prompt_tokens": "100"}}, 400, "bad_request", "`$.num_prompt_tokens`"),
    ({"body": {**GOOD, "num_prompt_tokens": True}}, 400, "bad_request", "`$.num_prompt_tokens`"),
    ({"body": {**GOOD, "num_prompt_tokens": 1}}, 400, "bad_request", "`$.num_prompt_tokens`"),
    ({"body": {**GOOD, "num_prompt_tokens": 1 << 31}}, 400, "bad_request", "a transfer needs 2 to"),
    ({"body": {**GOOD, "skip_tokens": 3}}, 400, "bad_request", "skip_tokens must be a multiple of 4"),
    ({"body": {**GOOD, "lease_s": 3601}}, 400, "bad_request", "`$.lease_s`"),
    ({"body": {**GOOD, "lease_s": None}}, 400, "bad_request", "`$.lease_s`"),
    ({"body": {**GOOD, "claim_secret": "too short"}}, 400, "bad_request", "`$.claim_secret`"),
    ({"body": {**GOOD, "token_digest": "D" * 64}}, 400, "bad_request", "`$.token_digest`"),
    ({"body": {**GOOD, "transfer_id": "two\nlines"}}, 400, "bad_request", "`$.transfer_id`"),
    ({"body": [GOOD]}, 400, "bad_request", "Reservation: Expected `object`, got `array`"),
    ({"raw": b"{"}, 400, "bad_request", "Reservation: "),
    ({"raw": b"\xff\xfe"}, 400, "bad_request", "Reservation: "),
    ({"raw": b"[" * 50_000}, 400, "bad_request", "Reservation: "),
    ({"body": GOOD, "version": "1"}, 400, "version", f"speaks version 1, this process version {VERSION}"),
    ({"body": GOOD, "version": str(VERSION + 1)}, 400, "version", "upgrade the older one"),
    ({"body": GOOD, "version": "x"}, 400, "version", "'x'"),
    ({"body": {**GOOD, "new": 1}, "version": str(VERSION + 1)}, 400, "version", "upgrade the older one"),
]


@pytest.mark.parametrize(("request_", "status", "code", "words"), REFUSALS, ids=lambda value: str(value)[:60])
def test_a_request_that_breaks_the_contract_gets_one_clear_refusal(
    pair: Nodes, request_: dict[str, Any], status: int, code: str, words: str
) -> None:
    """It names what is wrong, reserves nothing, and carries the version as every answer does."""
    answer = pair.ask("POST", "/v1/landings", **request_)
    assert (answer.status, answer.error[0]) == (status, code)
    assert words in answer.error[1]
    assert answer.headers[VERSION_HEADER] == str(VERSION)
    assert pair.ask("GET", "/v1/landings/good").status == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/landings/nobody", None, 404, "unknown"),
        ("GET", "/v1/landings/nobody?wait_s=61", None, 400, "bad_request"),
        ("GET", "/v1/landings/nobody?wait_s=-1", None, 400, "bad_request"),
        ("GET", "/v1/landings/nobody?wait_s=soon", None, 400, "bad_request"),
        ("GET", "/v1/landings/nobody?until=tomorrow", None, 400, "bad_request"),
        ("GET", "/v1/landings/nobody?unknown=1", None, 400, "bad_request"),
        ("POST", "/v1/landings/nobody/renew", {}, 404, "unknown"),
        ("POST", "/v1/landings/nobody/renew", {"lease_s": -1}, 400, "bad_request"),
        ("POST", "/v1/landings/nobody/renew", {"unknown": 1}, 400, "bad_request"),
        ("DELETE", "/v1/landings/nobody", None, 404, "unknown"),
        ("GET", "/v1/transfers/nobody", None, 404, "unknown"),
        ("GET", "/v1/links?wait_s=61", None, 400, "bad_request"),
        ("GET", "/v1/links?unknown=1", None, 400, "bad_request"),
        ("GET", "/v2/landings/nobody", None, 404, "http"),
        ("PUT", "/v1/landings", {}, 405, "http"),
    ],
)
def test_every_route_refuses_in_one_shape(
    pair: Nodes, method: str, path: str, body: object, status: int, code: str
) -> None:
    """A status, a code for programs and a sentence for people."""
    answer = pair.ask(method, path, body)
    assert (answer.status, answer.error[0]) == (status, code)
    assert answer.error[1]


def test_a_node_without_an_engine_reserves_nothing(pair: Nodes) -> None:
    """And says so; when the engine is back, it goes on."""
    pair.decode.close()
    try:
        wait_until(lambda: not pair.ask("GET", "/health").body["engines"])
        answer = pair.ask("POST", "/v1/landings", reservation(pair.new_id()))
        assert (answer.status, answer.error[0]) == (503, "no_engine")
    finally:
        pair.decode.attach()
    assert pair.ask("GET", "/health").body["engines"]


def test_an_arena_that_is_full_says_so(pair: Nodes) -> None:
    """With how much was wanted and is free."""
    answer = pair.ask("POST", "/v1/landings", {**reservation(pair.new_id()), "num_prompt_tokens": 1 << 20})
    assert (answer.status, answer.error[0]) == (503, "arena_full")
    assert "67108800 bytes" in answer.error[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"transfer_id": "another"},
        {"claim_secret": "a guess that is long enough"},
        {"token_digest": "e" * 64},
        {"num_prompt_tokens": 99},
    ],
    ids=str,
)
def test_a_landing_is_loaded_only_with_its_secret_and_prompt(pair: Nodes, wrong: dict[str, Any]) -> None:
    """Whatever is wrong, the answer is one and the landing stays for its own request."""
    transfer_id, _ = pair.landed()
    with pytest.raises(Refused) as refused:
        pair.decode.claim(msgspec.structs.replace(claim(transfer_id), **wrong))
    assert refused.value.code == "unknown_landing"
    assert refused.value.message == "no landing here has that transfer id, claim secret and prompt"
    guess = Declined(transfer_id=transfer_id, claim_secret="not the secret of this one", reason="x", recomputed=1)
    pair.decode.declined(guess)
    pair.decode.ping()
    record = pair.record(transfer_id)
    assert record["state"] == "landed"
    assert SECRET not in str(record)
    pair.decode.claim(claim(transfer_id))
    assert pair.decode.consumed(Consumed(transfer_id=transfer_id, loaded=99, recomputed=1)).valid


def test_an_engine_that_declines_ends_the_landing(pair: Nodes) -> None:
    """With its reason and what it computed; too late, it is told that nothing can be loaded."""
    transfer_id, _ = pair.landed()
    pair.decode.declined(Declined(transfer_id=transfer_id, claim_secret=SECRET, reason="full", recomputed=100))
    record = pair.record(transfer_id, "?wait_s=30&until=final")
    assert (record["state"], record["reason"]) == ("aborted", "full")
    assert (record["tokens_loaded"], record["tokens_recomputed"]) == (0, 100)
    with pytest.raises(Refused) as refused:
        pair.decode.claim(claim(transfer_id))
    assert refused.value.code == "not_landed"


def test_an_engine_that_dies_while_it_loads_holds_nothing(pair: Nodes) -> None:
    """Its landing ends with its connection."""
    transfer_id, _ = pair.landed()
    other = engine(pair.sink[1], "another life")
    other.claim(claim(transfer_id))
    other.close()
    record = pair.record(transfer_id, "?wait_s=30&until=final")
    assert record["state"] == "aborted"
    assert "disconnected" in record["reason"]
