"""Offloaded answers through gateway, two nodes and TCP equal local ones exactly.

The engines compute one sequence at a time here (--max-num-seqs 1), while eight requests at once keep gateway, nodes,
lanes and landings busy. vLLM's CPU kernels are not batch-invariant: prompts computed at once differ from the same
prompts one by one, without PrfaaS. `test_concurrency` covers batches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prfaas.testing.node_pair import wait_until
from prfaas.testing.site import MODEL_NAME, Site, http
from tests.integration.vllm.by_hand import decode_by_hand, landing_bytes, ship_by_hand
from tests.integration.vllm.exactness import STATE_BYTES, Case, distance, make_case, offload

pytestmark = pytest.mark.vllm

#: Blocks are 256 tokens (Qwen3-Next) and 128 (Gemma-3), chunks 512 on both engines: each border, one less, one more,
#: and the ends. Every prompt from 514 on is prefilled, and shipped, in several chunks.
LENGTHS = (
    2,
    3,
    40,
    127,
    128,
    129,
    130,
    255,
    256,
    257,
    258,
    300,
    511,
    512,
    513,
    514,
    700,
    1023,
    1024,
    1025,
    1026,
    1537,
    1900,
)


@pytest.fixture(scope="module", params=["qwen3-next", "gemma3"])
def site(request: pytest.FixtureRequest, models: Path) -> Iterator[Site]:
    """Both kinds of hybrid: linear state, and sliding window."""
    with Site(request.param, models=models, max_num_seqs=1) as site:
        site.kind = request.param  # type: ignore[attr-defined]
        yield site


def predicted_bytes(kind: str, length: int) -> int:
    """Image size by hand, not by the code under test: pages of K and V in bf16 for 2 KV heads of 64, plus states."""
    tokens, page_of = length - 1, {"qwen3-next": 256, "gemma3": 128}[kind]
    page_bytes = page_of * 2 * 2 * 64 * 2
    full_pages = -(-tokens // page_of)
    if kind == "qwen3-next":
        return 6 * STATE_BYTES + 2 * full_pages * page_bytes
    first_page = max(0, length - 128) // page_of
    return 5 * (full_pages - first_page) * page_bytes + full_pages * page_bytes


def test_equal_at_every_border_eight_at_once(site: Site) -> None:
    """Tokens equal, max |Δlogprob| is 0, all but one token loaded, bytes as predicted; shuffled, eight at once."""
    kind = site.kind  # type: ignore[attr-defined]
    rng = random.Random(1)
    cases = [make_case(site, length, rng) for length in LENGTHS]
    rng.shuffle(cases)

    def check(case: Case) -> str | None:
        answer = offload(site, case)
        story, length = site.story(answer), len(case.prompt)
        wanted = {
            "route": "remote", "kv_bytes_moved": predicted_bytes(kind, length), "tokens_loaded": length - 1,
            "tokens_recomputed": 1, "landing_state": "consumed",
        }  # fmt: skip
        found = {key: story.get(key) for key in wanted}
        gap = distance(case, answer)
        return None if gap == 0.0 and found == wanted else f"{length} tokens: |Δlogprob| {gap}, {found}"

    before = {source: _tokens_by_source(site, source) for source in ("external_kv_transfer", "local_compute")}
    with ThreadPoolExecutor(8) as pool:
        problems = [problem for problem in pool.map(check, cases) if problem]
    assert problems == []
    loaded = _tokens_by_source(site, "external_kv_transfer") - before["external_kv_transfer"]
    computed = _tokens_by_source(site, "local_compute") - before["local_compute"]
    assert (loaded, computed) == (sum(len(case.prompt) - 1 for case in cases), len(cases)), "by vLLM's own metrics"
    site.wait_idle()


def _tokens_by_source(site: Site, source: str) -> float:
    return site.metric(site.decode, "vllm:prompt_tokens_by_source_total", source=source)


def test_answers_vary(site: Site) -> None:
    """Different prompts get different answers; otherwise equality would prove nothing."""
    rng = random.Random(2)
    answers = {tuple(make_case(site, 200 + index, rng).expected.tokens) for index in range(4)}
    assert len(answers) == 4


def test_prefix_hit_on_the_prefill_engine(site: Site) -> None:
    """A prompt that the prefill engine has cached is shipped whole, cached pages included."""
    case = make_case(site, 900, random.Random(3))
    hits = site.metric(site.prefill, "vllm:prefix_cache_hits_total")
    for _ in range(3):
        answer = decode_by_hand(site, case.prompt, ship_by_hand(site, case.prompt))
        assert distance(case, answer) == 0.0

    def published() -> bool:  # vLLM publishes its figures with those of later requests
        site.ask([1, 2, 3], 1, url=site.prefill)
        return site.metric(site.prefill, "vllm:prefix_cache_hits_total") > hits

    wait_until(published, 30.0)


def test_partial_prefix_hit_on_the_decode_engine(site: Site) -> None:
    """Blocks that decode holds are neither sent nor loaded, and the answer is still exact.

    The prefill engine resumes at the last block that it has of the head. So must the local run, to have equal chunks:
    it is given the head first, less its last token as an offloaded prompt is.
    """
    rng = random.Random(4)
    head = [rng.randrange(256) for _ in range(800)]
    tail = [rng.randrange(256) for _ in range(299)]
    site.story(site.ask(head, 4, cache_salt=None))
    site.ask(head[:-1], 1, url=site.decode, cache_salt="local")
    local = site.ask([*head, *tail], 9, url=site.decode, cache_salt="local")
    answer = site.ask([*head, *tail, local.tokens[0]], 8, cache_salt=None)
    story = site.story(answer)
    assert answer.tokens == local.tokens[1:]
    assert answer.logprobs == local.logprobs[1:]
    assert story["route"] == "remote"
    assert story["skip_tokens"] > 0
    assert story["tokens_recomputed"] == 1
    assert story["kv_bytes_moved"] < predicted_bytes(site.kind, 1100)  # type: ignore[attr-defined]


def test_only_its_own_request_is_answered_from_a_landing(site: Site) -> None:
    """At the decode engine's own port, a transfer's id alone loads nothing, whatever prompt or version comes with it;
    the landing stays for the request that has the secret, whose answer is exact."""
    case = make_case(site, 600, random.Random(6))
    transfer_id = ship_by_hand(site, case.prompt)
    mine = [token ^ 1 for token in case.prompt]
    alone = site.ask(mine, 8, url=site.decode)
    guess = {"claim_secret": "a guess that is long enough"}
    for prompt, fields in ((mine, guess), (case.prompt, guess), (case.prompt, {"version": 1, "claim_secret": None})):
        answer = decode_by_hand(site, prompt, transfer_id, **fields)
        assert prompt is case.prompt or answer.tokens == alone.tokens
        record, _ = http(f"{site.decode_node}/v1/landings/{transfer_id}")
        assert (record["state"], record["tokens_loaded"]) == ("landed", None), fields
    answer = decode_by_hand(site, case.prompt, transfer_id)
    record, _ = http(f"{site.decode_node}/v1/landings/{transfer_id}")
    assert (record["state"], record["tokens_loaded"]) == ("consumed", 599)
    assert distance(case, answer) == 0.0


def test_another_version_of_the_parameters_is_refused(site: Site) -> None:
    """Either engine says which two versions met, and nothing moves; the prompt is answered all the same."""
    prompt = make_case(site, 600, random.Random(7)).prompt
    ours = {"version": 1, "transfer_id": "old", "peer": "east-0", "token": "t", "num_prompt_tokens": 600,
            "skip_tokens": 0, "num_bytes": 1, "deadline_s": 5.0}  # fmt: skip
    params = {"do_remote_decode": True, "do_remote_prefill": False, "prfaas": ours}
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": 1, "kv_transfer_params": params}
    reply, _ = http(f"{site.prefill}/v1/completions", body)
    report = reply["kv_transfer_params"]["prfaas"]
    assert report["status"] == "failed"
    assert "version 1" in report["error"]
    transfer_id = ship_by_hand(site, prompt)
    assert len(decode_by_hand(site, prompt, transfer_id, version=3).tokens) == 8
    record, _ = http(f"{site.decode_node}/v1/landings/{transfer_id}?until=final&wait_s=20")
    assert (record["state"], record["tokens_loaded"]) == ("aborted", 0)
    assert "version 3" in record["reason"]


def test_one_token_prompt_is_served_locally(site: Site) -> None:
    """There is nothing to move for one token."""
    story = site.story(site.ask([65], 4))
    assert story["route"] == "local"


def test_corrupted_landing_breaks_equality(site: Site) -> None:
    """Negative control: the comparison would notice wrong linear state. Corrupts a landing between landed and decode."""
    case = make_case(site, 600, random.Random(5))
    for corrupt, expect_equal in ((False, True), (True, False)):
        transfer_id = ship_by_hand(site, case.prompt)
        if corrupt:
            with landing_bytes(site).open("r+b") as stream:  # its first layers: linear state, or sliding windows
                stream.write(bytes(3 * STATE_BYTES))
        answer = decode_by_hand(site, case.prompt, transfer_id)
        assert (distance(case, answer) == 0.0) is expect_equal
