"""Which bytes of an image to copy, and when: out of an engine that prefills, and into one that decodes.

Laws of this file:
- Every byte of an image is shipped exactly once, however its prompt is cut into chunks.
- None is shipped before it is final. A page is final when all its tokens are computed, or all of the prompt's; the
  state, which changes with every token, after the image's last token only.
- What is loaded is what decode needs of the image beyond what the engine holds: whole pages, and the state always.

An engine gives the image's pieces a place in its own memory; how it does that is no business of this file.
"""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.core.model.layout import Image, KVGroupKind, KVLayout, Region


@dataclass(frozen=True, slots=True)
class PagePiece:
    """Bytes [start, end) of an image: pages [first_page, end_page) of one layer, counted from the prompt's begin."""

    layer: int
    group: int
    start: int
    end: int
    first_page: int
    end_page: int


@dataclass(frozen=True, slots=True)
class StatePiece:
    """Bytes [start, end) of an image: one layer's state after the prompt's first `end_token` tokens."""

    layer: int
    group: int
    start: int
    end: int
    end_token: int


Piece = PagePiece | StatePiece


class Shipping:
    """What of one image has left a prefilling engine. Layers may be asked for in any order."""

    def __init__(self, layout: KVLayout, image: Image) -> None:
        self.image = image
        self._layout = layout
        #: By layer: the first page that has not been shipped; for state, whether it has been.
        self._end_page: dict[int, int] = {}
        self._state_shipped: set[int] = set()

    def advance(self, layer: int, end_token: int) -> Piece | None:
        """What became final in `layer` now that tokens [0, `end_token`) are computed there; it counts as shipped from
        now on. None if nothing did. `end_token` is at most the image's, and may fall: an engine may start over.

        Raises KeyError for a layer that the image does not have.
        """
        region = self.image.by_layer[layer]
        if self._layout.groups[region.group].kind is KVGroupKind.LINEAR_STATE:
            if end_token != region.end_token or layer in self._state_shipped:
                return None
            self._state_shipped.add(layer)
            return StatePiece(layer, region.group, region.start, region.end, end_token)
        first_page, last_page = _pages(self._layout, region)
        shipped = self._end_page.get(layer, first_page)
        page_tokens = self._layout.groups[region.group].page_tokens
        final = last_page if end_token >= region.end_token else min(last_page, end_token // page_tokens)
        if final <= shipped:
            return None
        self._end_page[layer] = final
        return _piece(self._layout, region, shipped, final)


def loads(layout: KVLayout, image: Image, from_token: int) -> list[Piece]:
    """What to copy out of an image, layer by layer in model order, into an engine that holds tokens [0, `from_token`)
    of the prompt's attention. The first page of a layer may hold some of these too."""
    pieces: list[Piece] = []
    for region in image.regions:
        if layout.groups[region.group].kind is KVGroupKind.LINEAR_STATE:
            pieces.append(StatePiece(region.layer, region.group, region.start, region.end, region.end_token))
            continue
        first_token = max(region.first_token, from_token)
        if first_token < region.end_token:
            first_page, end_page = layout.groups[region.group].pages(first_token, region.end_token)
            pieces.append(_piece(layout, region, first_page, end_page))
    return pieces


def _pages(layout: KVLayout, region: Region) -> tuple[int, int]:
    """Half-open range of the pages that lie in a region."""
    return layout.groups[region.group].pages(region.first_token, region.end_token)


def _piece(layout: KVLayout, region: Region, first_page: int, end_page: int) -> PagePiece:
    page_bytes, origin = layout.groups[region.group].page_bytes, _pages(layout, region)[0]
    start, end = (region.start + (page - origin) * page_bytes for page in (first_page, end_page))
    assert region.start <= start < end <= region.end, f"{region} has no pages [{first_page}, {end_page})"
    return PagePiece(region.layer, region.group, start, end, first_page, end_page)
