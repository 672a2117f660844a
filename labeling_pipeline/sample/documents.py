"""Pages with known text: notices, as they hang on doors and counters, in several languages.

Everything random comes from the generator that the caller passes, and the fonts come along, so
the same generator draws the same page on every machine: DejaVu Sans, which matplotlib brings, and
for Chinese and Japanese a part of WenQuanYi Micro Hei that has the characters below.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from labeling_pipeline.drawing import CJK_FONT, default_font

TEXT_LINE = "text line"

LATIN = (
    *("Opening hours: 10 to 18", "Reading room, second floor", "Please keep this receipt"),
    *("Platform 4, departs 09:40", "Two adults and one child", "Total 38.50 EUR"),
    *("Lost and found: desk 3", "Bring your own cup and save 20%", "Mind the step"),
    *("Frische Brötchen ab 6 Uhr", "Straße gesperrt bis Montag", "Bitte leise schließen"),
    *("Café ouvert tous les jours", "Entrée libre le dimanche", "Poussez la porte à gauche"),
    *("Mañana cerrado por la tarde", "Salida al fondo del pasillo", "Hoy: sopa de pescado"),
)
CHINESE = (
    *("欢迎来到图书馆", "请保持安静", "出口在二楼", "上午九点开门", "下午六点关门"),
    *("禁止吸烟", "小心地滑", "火车站向前走", "咖啡每杯十八元", "谢谢您的光临"),
    *("今天天气很好", "请随手关门", "第三会议室", "儿童免费入场"),
)
JAPANESE = (
    *("いらっしゃいませ", "駅はこちらです", "本日は休みです", "お茶をどうぞ"),
    *("ありがとうございます", "足元に注意してください", "会議は三時からです"),
)

_SIZES_PX = ((480, 360), (360, 480), (420, 420), (520, 340))
# (paper, ink)
_COLORS = (
    ((252, 252, 250), (25, 25, 28)),
    ((246, 238, 217), (74, 44, 22)),
    ((226, 237, 247), (16, 42, 92)),
    ((22, 74, 58), (244, 246, 240)),
    ((28, 38, 74), (250, 222, 120)),
    ((168, 36, 40), (255, 250, 245)),
)
_HEADING_PX, _TEXT_PX, _LEAST_PX = 34, 25, 16


@dataclass(frozen=True)
class TextLine:
    """A line of a page. bbox_px: (4,) float64, x0 y0 x1 y1, the tight box of its ink."""

    text: str
    bbox_px: np.ndarray


@dataclass(frozen=True)
class Page:
    """A drawn page. image: (height, width, 3) uint8 RGB. lines: from top to bottom."""

    image: np.ndarray
    lines: tuple[TextLine, ...]


def draw_page(rng: np.random.Generator, texts: Sequence[str]) -> Page:
    """Draw a notice: four or five of the texts, the first one large, in the colours of a sign.

    texts: at least five.
    """
    width, height = _SIZES_PX[int(rng.integers(len(_SIZES_PX)))]
    paper, ink = _COLORS[int(rng.integers(len(_COLORS)))]
    chosen = rng.choice(texts, int(rng.integers(4, 6)), replace=False)
    image = Image.new("RGB", (width, height), paper)
    margin_px = int(rng.integers(24, 40))
    is_centred = bool(rng.integers(2))
    step_px = (height - 2 * margin_px) / len(chosen)
    lines = []
    for row, text in enumerate(str(choice) for choice in chosen):
        font = _fitting_font(text, _TEXT_PX if row else _HEADING_PX, width - 2 * margin_px)
        x = (width - font.getlength(text)) / 2 if is_centred else margin_px
        place = (round(x), round(margin_px + step_px * (row + 0.5)))
        written = Image.new("L", image.size)
        ImageDraw.Draw(written).text(place, text, font=font, fill=255, anchor="lm")
        image.paste(ink, mask=written)
        lines.append(TextLine(text, np.array(written.getbbox(), dtype=np.float64)))
    rule_y = round(margin_px + step_px)
    ImageDraw.Draw(image).line((margin_px, rule_y, width - margin_px, rule_y), fill=ink, width=2)
    return Page(np.asarray(image), tuple(lines))


def _fitting_font(text: str, wanted_px: int, width_px: int) -> ImageFont.FreeTypeFont:
    """The font that has the text, at the wanted size or as large as the width allows."""
    file = default_font() if text.isascii() or text in LATIN else CJK_FONT
    for size_px in range(wanted_px, _LEAST_PX, -1):
        # Which layout engine a Pillow has must not decide where a letter stands.
        font = ImageFont.truetype(str(file), size_px, layout_engine=ImageFont.Layout.BASIC)
        if font.getlength(text) <= width_px:
            return font
    raise ValueError(f"{text!r} does not fit into {width_px} px at {_LEAST_PX} px")
