"""Prompts that no prefix cache has seen. Pure: randomness is an argument."""

from __future__ import annotations

import random
from typing import Final, NamedTuple

#: Token ids that every vocabulary has and that are neither special nor out of range: byte-level ones start near here.
FIRST_TOKEN_ID: Final = 10
END_TOKEN_ID: Final = 250

#: Common words: one token each in most vocabularies.
WORDS: Final = (
    "time", "house", "river", "seven", "green", "paper", "light", "stone", "water", "music", "north", "glass",
)  # fmt: skip

#: Words of the first of two texts that find out how many tokens a word has: whole rounds of them.
PROBE_WORDS: Final = 2 * len(WORDS)

#: Tokens that texts stay below the wanted length, as the last round of words may have the longer ones: the model's
#: maximum must not be exceeded.
_TEXT_RESERVE: Final = 8


class Form(NamedTuple):
    """How a request looks. Token ids make lengths exact; `ignore_eos` is not part of OpenAI's API."""

    sends_text: bool
    ignore_eos: bool


#: The best first.
FORMS: Final = (Form(False, True), Form(False, False), Form(True, True), Form(True, False))


class WordSize(NamedTuple):
    """A text of n words has `tokens_per_word` · n + `other_tokens` tokens."""

    tokens_per_word: float
    other_tokens: int

    def num_words(self, num_tokens: int) -> int:
        """Words of a text that has a little less than so many tokens; at least one."""
        return max(1, int((num_tokens - _TEXT_RESERVE - self.other_tokens) / self.tokens_per_word))


def word_size(few: int, many: int) -> WordSize | None:
    """From the tokens of texts of PROBE_WORDS and twice as many words; None if these cannot be counts."""
    return WordSize((many - few) / PROBE_WORDS, 2 * few - many) if many > few > 0 else None


def random_tokens(rng: random.Random, num: int) -> list[int]:
    """A prompt that no prefix cache has seen: its first tokens are random already."""
    return [rng.randrange(FIRST_TOKEN_ID, END_TOKEN_ID) for _ in range(num)]


def random_text(rng: random.Random, num_words: int) -> str:
    """The same for servers that take text only. All words come once, in random order, before any comes again: so texts
    of as many words have almost as many tokens."""
    words: list[str] = []
    while len(words) < num_words:
        words += rng.sample(WORDS, len(WORDS))
    return " ".join(words[:num_words])
