"""`prfaas bench e2e`: which requests are sent when, and what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.bench.e2e.conversations import TalkingClient
from prfaas.bench.e2e.options import BadBench, E2eOptions, check_options, endpoint_name, token_id_range
from prfaas.bench.e2e.plan import Plan, Planned, Talks, most_at_once, plan_of
from prfaas.bench.e2e.prompts import Bodies, TokenMaterial, Turn, WordMaterial, answer_piece, prompt_piece
from prfaas.core.errors import PrfaasError
from prfaas.profiles.measure.prompts import WordSize
from prfaas.sim.sessions import Conversations
from prfaas.simulator.command import SimulateOptions
from prfaas.simulator.command import run as simulate
from prfaas.simulator.loads import LoadOptions

URL = "http://127.0.0.1:8000"
CASE = Path(__file__).parents[3] / "examples" / "case-study" / "prfaas.yaml"


def write_trace(path: Path, *rows: tuple[int, int, int, list[int]]) -> Path:
    """Rows of (milliseconds, input, output, ids)."""
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("arrivals", [None, "bursty 5x 3s 30s", "daily 0.2 1h"])
def test_a_deployments_requests_are_those_of_a_simulated_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arrivals: str | None
) -> None:
    """One by one: when they come, and how long prompt and answer are."""
    out = tmp_path / "simulated.jsonl"
    load = LoadOptions(num_requests=60, rate_rps=2.0, arrivals=arrivals)
    assert simulate(SimulateOptions(CASE, first_seed=7, load=load, as_json=True, requests=out)) == 0
    capsys.readouterr()
    simulated = [json.loads(line) for line in out.read_text().splitlines()]
    plan = plan_of(
        E2eOptions(URL, deployment=CASE, rate_rps=2.0, arrivals=arrivals, num_requests=60, seed=7)
    )  # fmt: skip
    assert [(r["arrival_s"], r["input_tokens"], r["output_tokens"]) for r in simulated] == [
        (p.at_s, p.input_tokens, p.output_tokens) for p in plan.requests
    ]


def test_a_trace_is_sent_whole_at_its_times_or_faster(tmp_path: Path) -> None:
    """From its first request on; nothing is taken off for what a cache would hold."""
    trace = write_trace(tmp_path / "t.jsonl", (5000, 700, 9, [1, 2]), (9000, 1024, 0, [1, 3]), (99000, 10, 5, [4]))
    plan = plan_of(E2eOptions(URL, trace=trace, time_scale=0.5, duration_s=10.0))
    assert list(plan.requests) == [Planned(1, 0.0, 700, 9, (1, 2)), Planned(2, 2.0, 1024, 1, (1, 3))]
    assert "multiplied by 0.5" in plan.words


def test_requests_end_with_the_duration_or_the_number() -> None:
    """Whichever is first."""
    options = E2eOptions(URL, input_tokens=10, rate_rps=50.0, duration_s=2.0)
    plan = plan_of(options)
    assert 50 < len(plan.requests) < 150
    assert max(request.at_s for request in plan.requests) < 2.0
    fast = plan_of(E2eOptions(URL, input_tokens=10, rate_rps=50.0, duration_s=1.0, time_scale=0.5))
    assert [one.at_s for one in fast.requests] == [one.at_s / 2 for one in plan.requests]
    few = plan_of(E2eOptions(URL, input_tokens=10, rate_rps=50.0, duration_s=2.0, num_requests=3))
    assert few.requests == plan.requests[:3]
    with pytest.raises(BadBench, match="no request comes"):
        plan_of(E2eOptions(URL, input_tokens=10, rate_rps=0.001, duration_s=0.001))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (E2eOptions("127.0.0.1", input_tokens=1, rate_rps=1.0), "is not a URL"),
        (E2eOptions(URL), "give one of --deployment"),
        (E2eOptions(URL, input_tokens=1, deployment=CASE), "give one of --deployment"),
        (E2eOptions(URL, input_tokens=1), "add --rate"),
        (E2eOptions(URL, deployment=CASE, output_tokens=4), "it goes with --input-tokens"),
        (E2eOptions(URL, trace=CASE, rate_rps=1.0), "--scale-time"),
        (E2eOptions(URL, input_tokens=1, rate_rps=1.0, block_tokens=16), "--block-tokens: it is about"),
        (E2eOptions(URL, input_tokens=1, arrivals="clients 3", time_scale=2.0), "--scale-time: clients ask"),
        (E2eOptions(URL, input_tokens=1, rate_rps=1.0, arrivals="clients 3"), "leave it out"),
        (E2eOptions(URL, input_tokens=1, rate_rps=1.0, plot=Path("x.pdf")), "must end in"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: E2eOptions, message: str) -> None:
    """In one sentence, before anything is sent."""
    with pytest.raises(PrfaasError, match=message):
        check_options(options)


@pytest.mark.parametrize("text", ["", "10", "10-", "-3", "9-9", "20-10", "1-4294967296", "a-b"])
def test_ranges_of_token_ids(text: str) -> None:
    """First and last, at least two ids, each of 31 bits."""
    with pytest.raises(BadBench, match="--token-ids"):
        token_id_range(text)
    assert token_id_range("10-249") == (10, 249)
    with pytest.raises(BadBench, match="--endpoint"):
        endpoint_name("responses")


@given(
    times_s=st.lists(st.floats(0, 100), min_size=1, max_size=40).map(sorted), timeout_s=st.floats(0.1, 50)
)  # fmt: skip
def test_the_most_that_can_be_in_flight(times_s: list[float], timeout_s: float) -> None:
    """As many as are sent within one timeout: that of a server which answers nobody."""
    plan = Plan([Planned(n, at_s, 1, 1) for n, at_s in enumerate(times_s)], None, 512, None, "")
    stuck = [sum(early <= at_s and at_s - timeout_s <= early for early in times_s) for at_s in times_s]
    assert most_at_once(plan, timeout_s) == max(stuck)


@given(key=st.integers(-(2**70), 2**70), short=st.integers(0, 40), more=st.integers(0, 600), seed=st.integers(0, 9))
def test_a_block_cut_short_begins_as_the_whole_one(key: int, short: int, more: int, seed: int) -> None:
    """So prompts share their prefixes as the trace says; every id is in its range, and there are exactly as many."""
    tokens = TokenMaterial(seed, (8, 1203))
    whole, part = (json.loads(b"[%b]" % tokens.piece((1, key), n)[:-1]) for n in (short + more, short))
    assert whole[:short] == part
    assert len(whole) == short + more
    assert all(8 <= token <= 1203 for token in whole)
    words = WordMaterial(seed, WordSize(1.0, 0))
    assert words.piece((1, key), short + more).startswith(words.piece((1, key), short))


def test_equal_blocks_are_equal_tokens_and_others_are_not() -> None:
    """What no block names is the request's own; another prompt seed is another world."""
    tokens = TokenMaterial(1, (10, 249))

    def ids(number: int, blocks: list[int], num: int, material: TokenMaterial = tokens) -> list[int]:
        found: list[int] = json.loads(b"[%b]" % prompt_piece(material, number, num, blocks, 16)[:-1])
        return found

    first, second = ids(1, [5, 6], 40), ids(2, [5, 7], 30)
    assert (len(first), len(second)) == (40, 30)
    assert first[:16] == second[:16]
    assert first[16:30] != second[16:30]
    assert ids(3, [5, 6], 40)[:32] == first[:32]
    assert ids(3, [5, 6], 40)[32:] != first[32:]
    assert ids(1, [5, 6], 40, TokenMaterial(2, (10, 249)))[:16] != first[:16]


def test_bodies_are_what_engines_take() -> None:
    """Token ids and exact lengths; a chat's turns, with answers sent back as they came."""
    tokens = TokenMaterial(1, (10, 249))
    turns = [Turn(tokens.piece((0, 1), 3), answer_piece([7, 8])), Turn(tokens.piece((0, 2), 2))]
    body = json.loads(Bodies("completions", "m", ignore_eos=True, wants_ids=True).body(turns, 5))
    assert body["prompt"][3:5] == [7, 8]
    assert len(body.pop("prompt")) == 7
    assert body == {
        "model": "m", "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.0,
        "ignore_eos": True, "return_token_ids": True, "max_tokens": 5,
    }  # fmt: skip
    chat = Bodies("chat", "m", ignore_eos=False, wants_ids=True)
    said = json.loads(chat.body([Turn(b"time ", chat.text('a "b"\n')), Turn(b"river ")], 5))
    assert said["messages"] == [
        {"role": "user", "content": "time "},
        {"role": "assistant", "content": 'a "b"\n'},
        {"role": "user", "content": "river "},
    ]
    assert "ignore_eos" not in said


def talks(**fields: object) -> Talks:
    given_ = {"terms": Conversations(2, 1.0, 3, 100), "lengths": lambda rng: rng.randrange(1, 50), "output_tokens": 10,
              "max_tokens": None, "num_requests": None, **fields}  # fmt: skip
    return Talks(**given_)


def test_a_conversation_grows_by_its_answers_and_ends_after_its_turns() -> None:
    """The shared tokens are in front of all; what a client asks depends on seed and client alone."""
    client, again, other = (TalkingClient(talks(), 1, number) for number in (4, 4, 5))
    asked = []
    for _ in range(7):
        asked.append(client.ask())
        client.answered(10)
    assert [(ask.conversation, ask.turn) for ask in asked] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1)]
    assert asked[0].prompt_tokens == 100 + asked[0].new_tokens
    assert asked[1].prompt_tokens == asked[0].prompt_tokens + 10 + asked[1].new_tokens
    assert again.ask() == asked[0]
    assert other.ask() != asked[0]


@given(most=st.integers(101, 400), seed=st.integers(0, 50), failures=st.sets(st.integers(0, 30)))
def test_no_prompt_is_too_long_and_a_refused_client_begins_anew(most: int, seed: int, failures: set[int]) -> None:
    """After as long as it was told to wait, or longer."""
    client = TalkingClient(talks(max_tokens=most, lengths=lambda rng: rng.randrange(1, 300)), seed, 0)
    has_failed = True
    for number in range(30):
        ask = client.ask()
        assert ask.prompt_tokens <= most
        assert ask.new_tokens >= 1
        assert not has_failed or ask.turn == 1
        has_failed = number in failures
        assert client.failed(2.0) >= 2.0 if has_failed else client.answered(10) >= 0
