"""The same weights in float32, by transformers: what an answer would be if nothing were rounded to bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prfaas.testing.site import Answer


def first_tokens(model: Path, prompts: Sequence[list[int]]) -> list[Answer]:
    """The first token of every prompt's answer, with every token's log-probability. Seconds per prompt."""
    import torch
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            logits = network(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1]
            logprobs = torch.log_softmax(logits.double(), -1).tolist()
            token = max(range(len(logprobs)), key=logprobs.__getitem__)
            answers.append(Answer([token], [logprobs[token]], None, [dict(enumerate(logprobs))]))
    return answers
