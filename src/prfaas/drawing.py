"""How pictures look, for screen, print and the colour-blind: Okabe and Ito's colours, each with its own dash."""

from __future__ import annotations

import html
import io
from typing import Any

from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 1)))

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "prfaas",
}


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def described_svg(figure: Figure, title: str, about: str) -> str:
    """It says in words what it shows, and is the same each time."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    end = text.index(">") + 1
    described = f"<title>{html.escape(title)}</title><desc>{html.escape(about)}</desc>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text[:end]}{described}{text[end:]}'
