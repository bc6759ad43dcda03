"""Widths of text without a font at hand.

Advances are those of DejaVu Sans, the widest of the fonts that the picture asks for, rounded up into a few
classes, so that a text is never wider than estimated in any of them.
"""

from __future__ import annotations

from functools import lru_cache

# Class of characters -> advance in units of the font size.
_ADVANCES: tuple[tuple[str, float], ...] = (
    (" !',.:;|ijlI·", 0.34),
    ('()[]{}/\\-frt"`J', 0.42),
    ("csvxyzkTFPELYZ_*?", 0.61),
    ("abdeghnopqu0123456789$", 0.64),
    ("SKVABXRC", 0.7),
    ("DGHNOQU&", 0.79),
    ("#+=<>~^×−", 0.84),
)
_ADVANCE_OF = {character: advance for characters, advance in _ADVANCES for character in characters}
_OTHER = 1.0
_BOLD = 1.12
ELLIPSIS = "…"


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width of a text in pixels at a font size in pixels."""
    width = size * sum(_ADVANCE_OF.get(character, _OTHER) for character in text)
    return width * _BOLD if bold else width


def fit(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """The text, or as much of it as fits with an ellipsis; empty where not even one letter fits."""
    if text_width(text, size, bold=bold) <= width:
        return text
    for length in range(len(text) - 1, 0, -1):
        short = text[:length].rstrip() + ELLIPSIS
        if text_width(short, size, bold=bold) <= width:
            return short
    return ""


def first_that_fits(texts: tuple[str, ...], width: float, size: float) -> str:
    """The first of several wordings that fits whole, else nothing."""
    return next((text for text in texts if text_width(text, size) <= width), "")
