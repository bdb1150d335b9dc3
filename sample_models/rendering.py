"""Text that is drawn, so that its exact wording is known: lines for readers, pages for detectors.

The fonts are the DejaVu families that matplotlib ships, so that nothing but Python packages is needed. A sample depends
on its generator alone; pictures are uint8 [height, width, 3] in RGB order.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sample_models import extra
from sample_models.photos import photo

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold")
WORDS = """about account address against airport amount apple autumn bank battery before below bicycle blue
board bottle bread bridge bright broken brother building button calm camera carbon careful castle center chair
change cheese church circle city class clean clear clock cloud coffee cold color common copper corner cotton
country credit current daily dark date dear degree delay depth desk detail dinner direct doctor double dozen
early east echo editor effect eight engine entry equal error event every exact extra fabric factor family fast
father fever field figure final finger first flight floor flower follow forest form forward fresh friend front
fruit garden glass gold grand great green ground guide half hammer happy harbor heavy height hidden history
hotel house hundred image income inside island jacket journal juice kitchen label ladder large later leader
leather left letter level light limit liquid little local lucky lunch machine major manual market master matter
meadow medium member metal middle minute mirror modern moment monday money month morning mother motor mountain
museum narrow nature nearby needle never night normal north number object ocean office often orange order oxygen
package page paint paper parent part pencil people pepper perfect phone picture piece planet plastic plate
pocket point police pool power press price printer private public quality quarter question quick quiet radio
railway rapid record region report result return river road rocket round sample school science season second
section select seven shadow sharp shelf shirt signal silver simple sister small smooth social south space speed
spring square station steel stone store storm street strong sugar summer sunday supply table target ticket tiger
timber today total tower town travel uncle under useful valley value vector village visit voice water weather
week weight west wheel white window winter wonder wood world yellow young zero
""".split()  # noqa: SIM905


@functools.cache
def font(name: str, size: int) -> Any:
    folder = Path(extra("matplotlib").get_data_path()) / "fonts" / "ttf"
    return extra("PIL.ImageFont").truetype(str(folder / f"{name}.ttf"), size)


def wording(rng: np.random.Generator, longest: int) -> str:
    """A line of at most `longest` characters: words, an amount, a date, a time or a code."""
    amount, code = f"${rng.integers(1, 9999)}.{rng.integers(10, 99)}", f"{rng.choice(list('ABCDEFGHK'))}"
    date = f"{rng.integers(1990, 2030)}-{rng.integers(1, 13):02}-{rng.integers(1, 29):02}"
    clock, code = f"{rng.integers(0, 24):02}:{rng.integers(0, 60):02}", f"{code}{rng.integers(100, 9999)}"
    pieces = [str(rng.choice([word, word.capitalize()])) for word in rng.choice(WORDS, 6)]
    pieces.insert(int(rng.integers(0, 3)), str(rng.choice([amount, date, clock, code])))
    line = ""
    for piece in pieces:
        if len(line) + len(piece) + 1 > longest:
            break
        line = f"{line} {piece}".strip()
    return line or pieces[0][:longest]


@dataclass(frozen=True)
class Ink:
    """How a line is drawn: its font, its colours (dark on light, or one time in five light on dark)."""

    font: Any
    ink: tuple[int, ...]
    paper: tuple[int, ...]

    @classmethod
    def drawn(cls, rng: np.random.Generator, size: int) -> Ink:
        dark, light = (tuple(int(c) for c in rng.integers(*span, 3)) for span in ((0, 90), (170, 256)))
        ink, paper = (light, dark) if rng.random() < 0.2 else (dark, light)
        return cls(font(str(rng.choice(FONTS)), size), ink, paper)


def text_line(rng: np.random.Generator, text: str, height: int, longest: int) -> np.ndarray:
    """The text on its paper, scaled to `height` and to at most `longest` pixels wide, a little blurred and noisy."""
    image, draw = extra("PIL.Image"), extra("PIL.ImageDraw")
    style, margin = Ink.drawn(rng, 40), int(rng.integers(3, 10))
    left, top, right, bottom = style.font.getbbox(text)
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    picture = image.new("RGB", size, style.paper)
    draw.Draw(picture).text((margin - left, margin - top), text, fill=style.ink, font=style.font)
    width = min(longest, max(1, round(size[0] * height / size[1])))
    picture = picture.resize((width, height), image.Resampling.BILINEAR)
    blurred = picture.filter(extra("PIL.ImageFilter").GaussianBlur(rng.uniform(0, 0.6)))
    noisy = np.asarray(blurred, np.float64) + rng.normal(0, rng.uniform(0, 6), (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def page(rng: np.random.Generator, side: int) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """A square page, plain or a photo, with text on strips of paper; and the strips (left, top, right, bottom)."""
    image, draw = extra("PIL.Image"), extra("PIL.ImageDraw")
    plain = np.full((side, side, 3), rng.integers(200, 256, 3), np.uint8)
    picture = image.fromarray(plain if rng.random() < 0.5 else photo(rng, side))
    pen, boxes, y = draw.Draw(picture), [], int(rng.integers(8, 40))
    while y < side - 40:
        style = Ink.drawn(rng, int(rng.integers(14, 30)))
        text, x = wording(rng, int(rng.integers(5, 22))), int(rng.integers(6, side // 3))
        left, top, right, bottom = (int(c) for c in pen.textbbox((x, y), text, font=style.font))
        if right < side - 4 and bottom < side - 4:
            boxes.append((left - 4, top - 4, right + 4, bottom + 4))
            pen.rectangle(boxes[-1], fill=style.paper)
            pen.text((x, y), text, fill=style.ink, font=style.font)
        y = bottom + int(rng.integers(14, 60))
    return np.asarray(picture), boxes


def shrunk_mask(boxes: list[tuple[int, int, int, int]], side: int, ratio: float = 0.4) -> np.ndarray:
    """What a differentiable-binarization detector is trained to mark: each box shrunk by area (1 - ratio²) / perimeter.

    Returns bool [side, side]. Liao et al., AAAI 2020, arXiv:1911.08947.
    """
    mask = np.zeros((side, side), bool)
    for left, top, right, bottom in boxes:
        width, height = right - left, bottom - top
        d = round(width * height * (1 - ratio**2) / (2 * (width + height)))
        mask[top + d : max(bottom - d, top + d + 1), left + d : right - d] = True
    return mask
