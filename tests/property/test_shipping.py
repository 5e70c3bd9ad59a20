"""Shipping and loading against an engine that remembers, for every byte, what was computed when it was copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.model.layout import Image, KVGroup, KVGroupKind, KVLayout
from prfaas.core.transfer.shipping import PagePiece, Piece, Shipping, StatePiece, loads

FULL, WINDOW, STATE = KVGroupKind.FULL_ATTENTION, KVGroupKind.SLIDING_WINDOW, KVGroupKind.LINEAR_STATE
#: (tokens computed in the place, page or -1 for state, byte in it): what a byte of KVCache was made of.
Byte = tuple[int, int, int]
MAX_TOKENS: Final = 60


@dataclass
class Engine:
    """Each layer's KV as bytes that say what they were computed from. Attention keeps every page; state is overwritten
    by every token."""

    layout: KVLayout
    computed: dict[int, int] = field(default_factory=dict)

    def compute(self, layer: int, end_token: int) -> None:
        """Tokens [0, end_token) went through this layer, and no more: an engine may start over."""
        self.computed[layer] = end_token

    def copied(self, piece: Piece) -> list[Byte]:
        """What a copy of the piece's place would read now."""
        group, end_token = self.layout.groups[piece.group], self.computed[piece.layer]
        if isinstance(piece, StatePiece):
            return [(end_token, -1, byte) for byte in range(group.state_bytes)]
        return [
            (max(0, min(group.page_tokens, end_token - page * group.page_tokens)), page, byte)
            for page in range(piece.first_page, piece.end_page)
            for byte in range(group.page_bytes)
        ]


@st.composite
def layouts(draw: st.DrawFn) -> KVLayout:
    """One to three groups with interleaved layers. Pages are of one to eight tokens, blocks of one to three pages."""
    kinds = draw(st.lists(st.sampled_from([FULL, WINDOW, STATE]), min_size=1, max_size=3))
    num_layers = draw(st.integers(len(kinds), 6))
    owner = [
        *range(len(kinds)),
        *draw(
            st.lists(st.integers(0, len(kinds) - 1), min_size=num_layers - len(kinds), max_size=num_layers - len(kinds))
        ),
    ]
    owner = draw(st.permutations(owner))
    page_tokens = draw(st.integers(1, 8))
    groups = []
    for index, kind in enumerate(kinds):
        layers = tuple(layer for layer, group in enumerate(owner) if group == index)
        if kind is STATE:
            groups.append(KVGroup(kind, layers, 0, 0, draw(st.integers(1, 4)), 0, ""))
        else:
            window = draw(st.integers(1, 20)) if kind is WINDOW else 0
            groups.append(KVGroup(kind, layers, page_tokens, draw(st.integers(1, 4)), 0, window, ""))
    align = page_tokens * draw(st.integers(1, 3))
    return KVLayout("m", tuple(groups), align, align, MAX_TOKENS)


@st.composite
def images(draw: st.DrawFn) -> tuple[KVLayout, Image]:
    """An image of a prompt of 2 to 60 tokens, of which the destination may hold some."""
    layout, num_tokens = draw(layouts()), draw(st.integers(2, MAX_TOKENS))
    skip = draw(st.integers(0, (num_tokens - 1) // layout.align_tokens)) * layout.align_tokens
    return layout, layout.image(num_tokens, skip)


def shipped(layout: KVLayout, image: Image, ends: Sequence[int], stops: Sequence[int]) -> list[Byte | None]:
    """The image after chunks that end at `ends`. In each, as engines do, layers before `stops` are asked for half way,
    and all at the end. Fails if a byte is shipped twice."""
    engine, shipping = Engine(layout), Shipping(layout, image)
    bytes_: list[Byte | None] = [None] * image.num_bytes
    layers = [region.layer for region in image.regions]
    for end, stop in zip(ends, stops, strict=True):
        asked = [layer for layer in layers if layer < stop] + layers
        for layer in asked:
            engine.compute(layer, end)
            piece = shipping.advance(layer, end)
            if piece is not None:
                assert bytes_[piece.start : piece.end] == [None] * (piece.end - piece.start), "shipped twice"
                bytes_[piece.start : piece.end] = engine.copied(piece)
    return bytes_


def final(layout: KVLayout, image: Image) -> list[Byte]:
    """The image after the whole prompt but its last token, from the layout's own regions."""
    engine = Engine(layout)
    bytes_: list[Byte] = []
    for region in image.regions:
        group = layout.groups[region.group]
        engine.compute(region.layer, image.num_prompt_tokens - 1)
        first, end = (0, 0) if group.kind is STATE else group.pages(region.first_token, region.end_token)
        piece: Piece = PagePiece(region.layer, region.group, region.start, region.end, first, end)
        if group.kind is STATE:
            piece = StatePiece(region.layer, region.group, region.start, region.end, region.end_token)
        bytes_ += engine.copied(piece)
    return bytes_


@st.composite
def chunkings(draw: st.DrawFn, num_tokens: int) -> tuple[list[int], list[int]]:
    """Ends of chunks up to `num_tokens`, some of which start over from an earlier token, and where each is asked half
    way."""
    ends = [*draw(st.lists(st.integers(0, num_tokens), max_size=12)), num_tokens]
    if draw(st.booleans()):
        ends.sort()
    return ends, draw(st.lists(st.integers(0, 6), min_size=len(ends), max_size=len(ends)))


@given(st.data(), images())
def test_every_byte_is_shipped_once_and_not_before_it_is_final(
    data: st.DataObject, drawn: tuple[KVLayout, Image]
) -> None:
    """Over any chunking, also one that starts over, the image is what the whole prompt makes of it."""
    layout, image = drawn
    ends, stops = data.draw(chunkings(image.num_prompt_tokens - 1))
    assert shipped(layout, image, ends, stops) == final(layout, image)


@given(st.data(), images())
def test_what_is_complete_leaves_at_once(data: st.DataObject, drawn: tuple[KVLayout, Image]) -> None:
    """After a chunk, every whole page before its end has been shipped: the wire need not wait for the prompt's end."""
    layout, image = drawn
    end = data.draw(st.integers(0, image.num_prompt_tokens - 1))
    bytes_ = shipped(layout, image, [end], [0])
    for region in image.regions:
        group = layout.groups[region.group]
        if group.kind is not STATE:
            first, _ = group.pages(region.first_token, region.end_token)
            num_whole = max(0, end // group.page_tokens - first) * group.page_bytes
            part = bytes_[region.start : region.end]
            assert None not in part[:num_whole]
            is_last = end == image.num_prompt_tokens - 1
            assert part[num_whole:] == [None] * len(part[num_whole:]) or is_last


@given(st.data(), images())
def test_loads_bring_what_decode_needs_and_nothing_else(data: st.DataObject, drawn: tuple[KVLayout, Image]) -> None:
    """Of every layer the pages with a token that the engine does not hold, each byte to where it was shipped from."""
    layout, image = drawn
    end_token = image.num_prompt_tokens - 1
    from_token = data.draw(st.integers(image.skip_tokens, end_token))
    bytes_, brought = final(layout, image), set[tuple[int, int]]()
    for piece in loads(layout, image, from_token):
        engine = Engine(layout)
        engine.compute(piece.layer, end_token)
        assert bytes_[piece.start : piece.end] == engine.copied(piece)
        pages = [-1] if isinstance(piece, StatePiece) else range(piece.first_page, piece.end_page)
        assert not brought & {(piece.layer, page) for page in pages}, "loaded twice"
        brought |= {(piece.layer, page) for page in pages}
    assert brought == set(needed(layout, image, from_token))


def needed(layout: KVLayout, image: Image, from_token: int) -> list[tuple[int, int]]:
    """(layer, page) of everything that decode reads and the engine does not hold, token by token."""
    found = []
    for region in image.regions:
        group = layout.groups[region.group]
        if group.kind is STATE:
            found.append((region.layer, -1))
        else:
            tokens = range(max(region.first_token, from_token), region.end_token)
            found += [(region.layer, token // group.page_tokens) for token in tokens]
    return found


def test_an_engine_that_holds_all_but_the_state_loads_the_state_alone() -> None:
    """The state cannot be rolled back, so it always comes along."""
    groups = (KVGroup(FULL, (1,), 4, 8, 0, 0, ""), KVGroup(STATE, (0,), 0, 0, 5, 0, ""))
    layout = KVLayout("m", groups, 4, 4, 100)
    assert loads(layout, layout.image(10), 9) == [StatePiece(0, 1, 0, 5, 9)]
    assert loads(layout, layout.image(10), 8) == [StatePiece(0, 1, 0, 5, 9), PagePiece(1, 0, 21, 29, 2, 3)]
