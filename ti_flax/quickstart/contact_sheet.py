"""Rows of pictures with captions, laid out as one picture."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

_SIDE = 152  # px, of each picture on the sheet
_GAP = 12
MARGIN = 24
_TITLE_SIZE = 17
_NOTE_SIZE = 12
_LINE = 1.25  # line height, in font sizes
_PAPER = (255, 255, 255)
_INK = (32, 32, 40)
_GREY = (96, 96, 108)


class Row(NamedTuple):
    """Pictures under a title, each with a note below it if there are notes."""

    title: str
    images: Sequence[Image.Image]
    notes: Sequence[str] = ()


def lay_out(rows: Sequence[Row]) -> Image.Image:
    """The rows below each other; pictures are enlarged smoothly."""
    columns = max(len(row.images) for row in rows)
    width = 2 * MARGIN + columns * _SIDE + (columns - 1) * _GAP
    tops = [MARGIN]
    for row in rows:
        tops.append(tops[-1] + _height(row) + _GAP)
    page = Image.new("RGB", (width, tops[-1] - _GAP + MARGIN), _PAPER)
    for row, top in zip(rows, tops[:-1], strict=True):
        _draw(page, row, top)
    return page


def _draw(page: Image.Image, row: Row, top: int) -> None:
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, top), row.title, _INK, _font(_TITLE_SIZE))
    top += _title_height()
    for column, image in enumerate(row.images):
        left = MARGIN + column * (_SIDE + _GAP)
        large = image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        page.paste(large, (left, top))
    for column, note in enumerate(row.notes):
        left = MARGIN + column * (_SIDE + _GAP)
        for line, text in enumerate(_wrapped(note)):
            down = top + _SIDE + 5 + round(line * _LINE * _NOTE_SIZE)
            pen.text((left, down), text, _GREY, _font(_NOTE_SIZE))


def _height(row: Row) -> int:
    lines = max((len(_wrapped(note)) for note in row.notes), default=0)
    return _title_height() + _SIDE + round(lines * _LINE * _NOTE_SIZE) + 5


def _title_height() -> int:
    return round(1.6 * _TITLE_SIZE)


def _wrapped(text: str) -> list[str]:
    """Lines that are no wider than a picture, unless a single word is."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font(_NOTE_SIZE).getlength(longer) <= _SIDE:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
