"""Where bits may differ, they differ by rounding: other chunks, batches, and kernels for the last prompt token.

The prefill engine computes in chunks of 512 tokens, the decode engine in one of up to 2,048. What is compared, and how
large differences are beside those that vLLM alone makes, is in docs/equality.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prfaas.demo.tiny_models import VOCAB_TOKENS
from prfaas.testing.rounding import median_widest_gap
from prfaas.testing.site import Answer, Site
from tests.integration.vllm.by_hand import decode_by_hand, landing_bytes, ship_by_hand
from tests.integration.vllm.exactness import CONVOLUTION_BYTES, STATE_BYTES, Case, distance, make_case, offload

pytestmark = pytest.mark.vllm

#: For the median over prompts of the largest |Δlogprob| of the first token. bfloat16 itself costs about a fifth of it
#: (docs/benchmarks/equality.md), so no rounding comes near; one wrong layer takes several times as much.
BOUND = 0.25
LENGTHS = (700, 1025, 1300, 1537, 1900)
WHOLE = {"logprobs": VOCAB_TOKENS}


@pytest.fixture(scope="module")
def site(models: Path) -> Iterator[Site]:
    """Engines whose chunks differ."""
    with Site("qwen3-next", models=models, decode_chunk_tokens=2048) as site:
        yield site


@pytest.fixture(scope="module")
def cases(site: Site) -> list[Case]:
    """Answers of the decode engine in its own chunks."""
    rng = random.Random(1)
    return [make_case(site, length, rng, **WHOLE) for length in LENGTHS]


def gap(cases: list[Case], answers: list[Answer]) -> float:
    """What `BOUND` is for."""
    return median_widest_gap([case.expected for case in cases], answers)


def test_other_chunks_differ_by_rounding(
    site: Site, cases: list[Case], record_property: Callable[[str, object], None]
) -> None:
    """Offloaded from chunks of 512, an answer is near the local one in chunks of 2,048, and exactly the prefill engine's
    own, which has the same chunks."""
    found = gap(cases, [offload(site, case, **WHOLE) for case in cases])
    record_property("gap", found)
    assert found < BOUND
    rng = random.Random(2)
    for length in LENGTHS:
        case = make_case(site, length, rng, url=site.prefill)
        assert distance(case, offload(site, case)) == 0.0, length


def swap_two_layers(image: bytearray) -> None:
    """Layer 0 gets the state of layer 1 and the other way round."""
    first, second = image[:STATE_BYTES], image[STATE_BYTES : 2 * STATE_BYTES]
    image[: 2 * STATE_BYTES] = second + first


def shift_one_layer(image: bytearray) -> None:
    """The recurrent state of layer 0 lies one row of 64 numbers too late."""
    state, row_bytes = image[CONVOLUTION_BYTES:STATE_BYTES], 64 * 4
    image[CONVOLUTION_BYTES:STATE_BYTES] = state[-row_bytes:] + state[:-row_bytes]


@pytest.mark.parametrize("damage", [swap_two_layers, shift_one_layer])
def test_wrong_kv_is_no_rounding(
    site: Site,
    cases: list[Case],
    damage: Callable[[bytearray], None],
    record_property: Callable[[str, object], None],
) -> None:
    """Negative control: an image with one wrong layer is outside the bound."""
    site.wait_idle()
    answers = []
    for case in cases:
        transfer_id = ship_by_hand(site, case.prompt)
        with landing_bytes(site).open("r+b") as stream:
            image = bytearray(stream.read(2 * STATE_BYTES))
            damage(image)
            stream.seek(0)
            stream.write(image)
        answers.append(decode_by_hand(site, case.prompt, transfer_id, VOCAB_TOKENS))
    found = gap(cases, answers)
    record_property("gap", found)
    assert found > 2 * BOUND


def test_as_a_client_sends_it(site: Site, record_property: Callable[[str, object], None]) -> None:
    """With the last prompt token in decode's kernels, and other chunks besides, answers still differ by rounding.

    How many of them tip at a near tie is not for a test to say: `benchmarks.equality.rounding` measures it.
    """
    rng = random.Random(3)
    prompts = [[rng.randrange(256) for _ in range(length)] for length in LENGTHS]
    local = [site.ask(prompt, 8, url=site.decode, **WHOLE) for prompt in prompts]
    offloaded = [site.ask(prompt, 8, **WHOLE) for prompt in prompts]
    assert {site.story(answer)["route"] for answer in offloaded} == {"remote"}
    found = median_widest_gap(local, offloaded)
    record_property("gap", found)
    record_property("equal", sum(a.tokens == b.tokens for a, b in zip(local, offloaded, strict=True)))
    assert found < BOUND


def test_eight_in_one_batch(site: Site) -> None:
    """Chunks of several prompts share steps on both engines; each prompt still moves whole and is loaded whole.

    vLLM's CPU kernels round differently in a batch, so the first log-probability may differ by as much as it does
    between local runs of the same prompts, alone and together.
    """
    rng = random.Random(1)
    lengths = [rng.randrange(300, 1900) for _ in range(24)]
    cases = [make_case(site, length, rng) for length in lengths]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda case: offload(site, case), cases))
        together = list(pool.map(lambda case: site.ask(case.prompt, 1, url=site.decode), cases))
    alone = [site.ask(case.prompt, 1, url=site.decode) for case in cases]
    noise = max(abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(together, alone, strict=True))
    for case, answer in zip(cases, answers, strict=True):
        story = site.story(answer)
        assert story["route"] == "remote", story
        assert (story["tokens_loaded"], story["tokens_recomputed"]) == (len(case.prompt) - 1, 1)
        assert story["kv_bytes_moved"] == story["kv_bytes_expected"] > 0
        if answer.tokens[0] == case.expected.tokens[0]:
            assert abs(answer.logprobs[0] - case.expected.logprobs[0]) <= max(0.7, 2 * noise)
    agreeing = sum(a.tokens[0] == c.expected.tokens[0] for a, c in zip(answers, cases, strict=True))
    assert agreeing >= len(cases) - 4, "near ties may tip, wrong KV would tip them all"
    site.wait_idle()
