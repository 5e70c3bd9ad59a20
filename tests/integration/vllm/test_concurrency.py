"""Preemption and compiled graphs; `test_rounding` has many requests in one batch."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prfaas.testing.site import Site
from tests.integration.vllm.exactness import distance, make_case, offload

pytestmark = pytest.mark.vllm


def test_preemption_on_the_decode_engine(models: Path) -> None:
    """With KV space for fewer sequences than run, requests are preempted after their landing is gone, and finish."""
    # 50 blocks of 256 tokens let all eight prompts start (two blocks of attention and three of state each), and are
    # too few when each has grown to five blocks of attention, long after the last has started. On a busy machine some
    # may start so late that others have ended by then, and nothing is preempted: then they are sent again.
    few_blocks = ("--num-gpu-blocks-override", "50")
    rng = random.Random(2)
    with Site("qwen3-next", models=models, decode_args=few_blocks) as site:
        for _ in range(5):
            prompts = [[rng.randrange(256) for _ in range(rng.randrange(260, 300))] for _ in range(8)]
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda prompt: site.ask(prompt, 900), prompts))
            assert [len(answer.tokens) for answer in answers] == [900] * 8
            for answer in answers:
                assert site.story(answer)["route"] == "remote"
            if site.metric(site.decode, "vllm:num_preemptions_total") > 0:
                break
        assert site.metric(site.decode, "vllm:num_preemptions_total") > 0
        site.wait_idle()
        case = make_case(site, 600, rng)
        assert distance(case, offload(site, case)) == 0.0


def test_compiled(models: Path) -> None:
    """With compiled graphs on both engines, layers of both kinds still leave and arrive exactly."""
    with Site("qwen3-next", models=models, eager=False, max_num_seqs=1) as site:
        rng = random.Random(3)
        for length in (40, 257, 513, 1300):
            case = make_case(site, length, rng)
            answer = offload(site, case)
            assert distance(case, answer) == 0.0, length
            assert site.story(answer)["tokens_loaded"] == length - 1
        site.wait_idle()
