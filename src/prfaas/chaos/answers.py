"""What answers must be, where engines are emulated: those of a real model are not known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from prfaas.bench.e2e.prompts import ALONE, Material
from prfaas.chaos.records import Record
from prfaas.chaos.site import Site
from prfaas.deployment.load import resolve_model_dir
from prfaas.engines.emulated.answers import answer_tokens, seed_of
from prfaas.engines.emulated.configure import emulated_of
from prfaas.engines.emulated.kv import KVBytes
from prfaas.engines.emulated.texts import Texts

_NOWHERE: Final = Path()


class Answers:
    """Of the engines of one deployment."""

    def __init__(self, site: Site) -> None:
        model_dir = resolve_model_dir(site.deployment, site.file)
        emulated = emulated_of(site.deployment, site.document, model_dir, _NOWHERE, ())
        self._kv = KVBytes(emulated.instances[0].layout)
        self._alphabet = Texts(model_dir).alphabet

    def to(self, token_ids: list[int], num_tokens: int) -> list[int]:
        """The whole answer to a prompt, from a KVCache without a wrong byte."""
        return answer_tokens(seed_of(self._kv.names(token_ids).whole, ()), num_tokens, self._alphabet)

    def expect(self, record: Record, material: Material) -> None:
        """Of a request that stands alone, made of `material`."""
        sent = record.sent
        piece = material.piece((ALONE, sent.number), sent.input_tokens)
        record.expected = self.to([int(word) for word in piece.rstrip(b",").split(b",")], sent.max_tokens)


def answers_of(site: Site) -> Answers | None:
    """None where answers cannot be known."""
    return Answers(site) if site.deployment.is_emulated else None
