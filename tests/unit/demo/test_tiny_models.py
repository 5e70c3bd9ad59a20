"""Tiny models are made whole, the same every time, and a byte is a token."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from prfaas.demo.tiny_models import MODELS, SPECIALS, VOCAB_TOKENS, make_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models, made once."""
    directory = tmp_path_factory.mktemp("models")
    for kind in MODELS:
        make_model(kind, directory)
    return directory


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", MODELS)
def test_the_same_weights_every_time(folder: Path, tmp_path: Path, kind: str) -> None:
    """From a fixed seed, whatever was drawn before."""
    again = make_model(kind, tmp_path)
    assert digest(folder / kind / "model.safetensors") == digest(again / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == [kind]


@pytest.mark.parametrize("kind", MODELS)
def test_a_byte_is_a_token(folder: Path, kind: str) -> None:
    """Any text, also beyond ASCII, has as many tokens as bytes, and comes back."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / kind / "tokenizer.json"))
    text = "Prefill here, decode there: 早い, naïve\n\t ok"
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert max(ids) < 256 < max(SPECIALS.values()) < VOCAB_TOKENS


@pytest.mark.parametrize(("kind", "expected"), [("qwen3-next", "linear_attention"), ("gemma3", "sliding_attention")])
def test_attention_is_hybrid(folder: Path, kind: str, expected: str) -> None:
    """Both kinds of layer, or the tests would prove less than they say."""
    kinds = json.loads((folder / kind / "config.json").read_text())["layer_types"]
    assert set(kinds) == {"full_attention", expected}


def test_a_model_that_is_there_is_left_alone(folder: Path) -> None:
    """Two demos may share a folder."""
    before = (folder / "gemma3" / "model.safetensors").stat().st_mtime_ns
    make_model("gemma3", folder)
    assert (folder / "gemma3" / "model.safetensors").stat().st_mtime_ns == before


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    """With the kinds that there are."""
    with pytest.raises(ValueError, match="there are qwen3-next, gemma3"):
        make_model("gpt-5", tmp_path)
