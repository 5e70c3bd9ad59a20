"""KVCache that can be checked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.model.layout import KVGroup, KVGroupKind, KVLayout
from prfaas.core.transfer.shipping import Piece, Shipping, loads
from prfaas.engines.emulated.answers import answer_tokens, seed_of
from prfaas.engines.emulated.kv import KVBytes, scaled

LAYOUT = KVLayout(
    model="m",
    groups=(
        KVGroup(KVGroupKind.LINEAR_STATE, (0, 2), 0, 0, 40, 0, "f32"),
        KVGroup(KVGroupKind.FULL_ATTENTION, (1, 3), 16, 64, 0, 0, "bf16"),
        KVGroup(KVGroupKind.SLIDING_WINDOW, (4,), 16, 48, 0, 40, "bf16"),
    ),
    block_tokens=16,
    align_tokens=16,
    max_model_tokens=1000,
)
KV = KVBytes(LAYOUT)

prompts = st.lists(st.integers(0, 300), min_size=2, max_size=200)


def whole_image(token_ids: list[int], skip_tokens: int, ends: list[int]) -> bytes:
    """As a prefill that is cut into chunks with these ends ships it."""
    image = LAYOUT.image(len(token_ids), skip_tokens)
    shipping, names = Shipping(LAYOUT, image), KV.names(token_ids[:-1])
    found = bytearray(image.num_bytes)
    for end in [*sorted(min(end, len(token_ids) - 1) for end in ends), len(token_ids) - 1]:
        for layer in image.by_layer:
            piece = shipping.advance(layer, end)
            if piece is not None:
                found[piece.start : piece.end] = KV.of(piece, names)
    return bytes(found)


def wrong_pages(token_ids: list[int], image: bytes, skip_tokens: int = 0) -> list[tuple[int, int]]:
    """(layer, page) of everything that whoever loads it finds wrong."""
    names = KV.names(token_ids[:-1])
    pieces: list[Piece] = loads(LAYOUT, LAYOUT.image(len(token_ids), skip_tokens), skip_tokens)
    return [(p.layer, page) for p in pieces for page in KV.wrong_parts(p, names, image[p.start : p.end])]


@given(prompts, st.lists(st.integers(1, 200), max_size=4), st.integers(0, 5))
def test_an_image_is_right_however_its_prompt_was_cut(token_ids: list[int], ends: list[int], skip_blocks: int) -> None:
    """Chunks and skipped prefixes change no byte of what is sent."""
    skip_tokens = min(skip_blocks, (len(token_ids) - 1) // 16) * 16
    assert wrong_pages(token_ids, whole_image(token_ids, skip_tokens, ends), skip_tokens) == []


@given(prompts, st.data())
def test_any_wrong_byte_is_found_where_it_is(token_ids: list[int], data: st.DataObject) -> None:
    """In its layer, and in its page."""
    image = bytearray(whole_image(token_ids, 0, []))
    place = data.draw(st.integers(0, len(image) - 1))
    image[place] ^= 1 << data.draw(st.integers(0, 7))
    (region,) = [r for r in LAYOUT.image(len(token_ids)).regions if r.start <= place < r.end]
    group = LAYOUT.groups[region.group]
    first_page = 0 if group.state_bytes else group.pages(region.first_token, region.end_token)[0]
    page = -1 if group.state_bytes else first_page + (place - region.start) // group.page_bytes
    assert wrong_pages(token_ids, bytes(image)) == [(region.layer, page)]


@given(prompts, st.data())
def test_the_kv_of_another_prompt_is_wrong_from_the_first_other_token_on(
    token_ids: list[int], data: st.DataObject
) -> None:
    """A page of the common prefix is the same, every later one and every state is not."""
    place = data.draw(st.integers(0, len(token_ids) - 2))
    other = [*token_ids[:place], token_ids[place] + 1, *token_ids[place + 1 :]]
    wrong = {(layer, page) for layer, page in wrong_pages(token_ids, whole_image(other, 0, []))}
    num_pages = -(-(len(token_ids) - 1) // 16)
    assert {(layer, page) for layer, page in wrong if layer == 1} == {(1, p) for p in range(place // 16, num_pages)}
    assert {(0, -1), (2, -1)} <= wrong


def test_pages_of_two_layers_differ() -> None:
    """A layer in another's place is told."""
    image = bytearray(whole_image(list(range(50)), 0, []))
    regions = LAYOUT.image(50).by_layer
    image[regions[3].start : regions[3].end] = image[regions[1].start : regions[1].end]
    assert {layer for layer, _ in wrong_pages(list(range(50)), bytes(image))} == {3}


def test_an_answer_depends_on_the_prompt_and_on_what_is_wrong() -> None:
    """The same for the same; a longer one begins alike."""
    name = KV.names([1, 2, 3]).whole
    seeds = {seed_of(name, []), seed_of(name, ["group 1 layer 1 page 0 ab"]), seed_of(KV.names([1, 2, 4]).whole, [])}
    assert len(seeds) == 3
    seed = seed_of(name, [])
    assert answer_tokens(seed, 10, [5, 6, 7]) == answer_tokens(seed, 20, [5, 6, 7])[:10]
    assert set(answer_tokens(seed, 100, [5, 6, 7])) == {5, 6, 7}


def test_a_scaled_layout_has_that_share_of_the_bytes() -> None:
    """Of pages and states; its model is another one, so that nobody takes its KV for the real."""
    half = scaled(LAYOUT, 0.5)
    assert half.image(100).num_bytes * 2 == LAYOUT.image(100).num_bytes
    assert half.fingerprint != LAYOUT.fingerprint
    assert scaled(LAYOUT, 1.0) is LAYOUT
    assert scaled(LAYOUT, 1e-9).image(100).num_bytes > 0
