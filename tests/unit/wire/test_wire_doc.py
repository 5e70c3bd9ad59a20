"""docs/wire.md says what the code enforces."""

from __future__ import annotations

import ast
import re
import struct
from pathlib import Path

import pytest

import prfaas
from prfaas.core.wire import frames
from prfaas.core.wire.messages import Abort, encode_message
from tools.wire_doc import BEGIN, END, PAGE, rewritten

SOURCE = Path(prfaas.__file__).parent
TEXT = PAGE.read_text(encoding="utf-8")


def test_generated_part_is_current() -> None:
    """Run `python tools/wire_doc.py` if this fails."""
    assert TEXT == rewritten(TEXT)


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_its_comments_is_refused(page: str) -> None:
    """Otherwise text outside the generated part would be lost."""
    with pytest.raises(ValueError, match="once each"):
        rewritten(page)


def test_header_table_is_the_struct() -> None:
    """Offsets and sizes of the header's fields, in order, without gaps."""
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `\w+` \|", TEXT, re.MULTILINE)
    sizes = [struct.calcsize(f"<{code}") for code in re.findall(r"\d*[a-zA-Z]", frames._HEADER.format)]
    expected = [(sum(sizes[:index]), size) for index, size in enumerate(sizes)]
    assert [(int(offset), int(size)) for offset, size in rows] == expected
    assert sum(sizes) == frames.HEADER_BYTES


def test_every_refusal_is_explained() -> None:
    """Each code that closes a lane or ends a transfer has its row."""
    codes: set[str] = set()
    for name in (
        "core/wire/frames.py",
        "core/wire/lane.py",
        "core/wire/messages.py",
        "core/transfer/landings.py",
        "transport/inbound.py",
    ):
        for node in ast.walk(ast.parse((SOURCE / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                first = node.args[0]
                if node.func.id in ("RemoteProtocolError", "Refuse") and isinstance(first, ast.Constant):
                    codes.add(str(first.value))
    codes |= {"unknown_landing", "size_mismatch", "not_open", "sender_aborted", "too_many_connections"}
    assert {"bad_magic", "bad_state", "wrong_node", "layout_mismatch"} <= codes
    for code in codes:
        assert f"| `{code}` |" in TEXT, code


def test_control_payloads_are_maps() -> None:
    """As the page says: msgpack, field names as keys."""
    assert (
        encode_message(Abort("a", "b", "c", "d"))
        == b"\x84\xabtransfer_id\xa1a\xa5token\xa1b\xa4code\xa1c\xa7message\xa1d"
    )
