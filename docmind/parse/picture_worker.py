"""The drawing process: `python -m docmind.parse.picture_worker …` draws one page of one hostile PDF, and is gone.

The job comes as one JSON line on stdin, what shall be drawn as arguments; one line goes back to the pipe that was
stdout: {"picture": [width, height, JPEG in base64]} or {"refused": reason}. The other side, `docmind.parse.picture`,
trusts none of it.
"""

from __future__ import annotations

import base64
import ctypes
import io
import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import pypdfium2.raw as pdfium
from PIL import Image, ImageChops, ImageStat

from docmind.parse.pages import CannotRead
from docmind.parse.worker import limit_cpu, limit_memory, read_jobs, say, take_stdout

if TYPE_CHECKING:
    from collections.abc import Sequence

JPEG_QUALITY: Final = 88  # letters stay sharp; a page of text at scale 1.5 is 150 to 300 kB
# The marker multiplies: black letters stay black, white paper becomes this. On dark ground that would not show, so
# there it brightens instead.
_MARKER: Final = (255, 226, 110)
_MARKER_ON_DARK: Final = (110, 80, 0)
_DARK: Final = 90  # mean lightness of 0 to 255 below which the ground of a box is dark


def main(number: int, scale: float, boxes: Sequence[Sequence[float]], limits: Sequence[float]) -> None:
    """Draws one page when the job has come.

    Args:
        number: Of the page, 1-based.
        scale: Pixels for a point, before `limits`.
        boxes: [x0, y0, x1, y1] in points of the page as displayed, y downwards.
        limits: Bytes of memory, seconds of CPU time, pixels of the picture, pixels of its longer side.
    """
    answers = take_stdout()
    jobs = read_jobs(sys.stdin.buffer)
    memory_bytes, cpu_seconds, max_pixels, max_side = limits
    limit_memory(int(memory_bytes))
    limit_cpu(cpu_seconds)
    try:
        picture = _mark(*_draw(jobs.get()["path"], number, scale, int(max_pixels), int(max_side)), boxes)
    except CannotRead as error:
        say(answers, {"refused": error.reason})
        return
    except MemoryError:
        say(answers, {"refused": "memory_limit"})
        return
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # coloured letters would fray otherwise
    jpeg = base64.b64encode(buffer.getvalue()).decode("ascii")
    say(answers, {"picture": [picture.width, picture.height, jpeg]})


def _draw(path: str, number: int, scale: float, max_pixels: int, max_side: int) -> tuple[Image.Image, float]:
    """The page as displayed, rotated and cropped as it says, and how many pixels a point has become.

    Raises:
        CannotRead: encrypted or damaged.
    """
    pdfium.FPDF_InitLibrary()
    document = pdfium.FPDF_LoadDocument(os.fsencode(path), None)
    if not document:
        is_locked = pdfium.FPDF_GetLastError() == pdfium.FPDF_ERR_PASSWORD
        raise CannotRead("encrypted" if is_locked else "damaged")
    page = pdfium.FPDF_LoadPage(document, number - 1)
    if not page:
        raise CannotRead("damaged")
    width, height = pdfium.FPDF_GetPageWidthF(page), pdfium.FPDF_GetPageHeightF(page)
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise CannotRead("damaged")
    scale = min(scale, math.sqrt(max_pixels / (width * height)), max_side / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    bitmap = pdfium.FPDFBitmap_CreateEx(*size, pdfium.FPDFBitmap_BGRx, None, 0)
    if not bitmap:
        raise MemoryError
    pdfium.FPDFBitmap_FillRect(bitmap, 0, 0, *size, 0xFFFFFFFF)
    pdfium.FPDF_RenderPageBitmap(bitmap, page, 0, 0, *size, 0, pdfium.FPDF_ANNOT)
    stride = pdfium.FPDFBitmap_GetStride(bitmap)
    address = pdfium.FPDFBitmap_GetBuffer(bitmap)
    pixels = ctypes.string_at(address, stride * size[1])
    return Image.frombuffer("RGB", size, pixels, "raw", "BGRX", stride, 1), scale


def _mark(picture: Image.Image, scale: float, boxes: Sequence[Sequence[float]]) -> Image.Image:
    """The picture with a translucent marker over the boxes."""
    places: list[tuple[int, int, int, int]] = []
    for x0, y0, x1, y1 in boxes:
        left, top = max(0, math.floor(x0 * scale)), max(0, math.floor(y0 * scale))
        right, bottom = min(picture.width, math.ceil(x1 * scale)), min(picture.height, math.ceil(y1 * scale))
        if left < right and top < bottom:
            places.append((left, top, right, bottom))
    if not places:
        return picture
    # One sheet for each way to mark, so that boxes that overlap are not marked twice.
    multiplied, brightened = Image.new("RGB", picture.size, "white"), Image.new("RGB", picture.size, "black")
    for place in places:
        is_dark = ImageStat.Stat(picture.crop(place).convert("L")).mean[0] < _DARK
        sheet, colour = (brightened, _MARKER_ON_DARK) if is_dark else (multiplied, _MARKER)
        sheet.paste(colour, place)
    return ImageChops.screen(ImageChops.multiply(picture, multiplied), brightened)


def _arguments(argv: Sequence[str]) -> tuple[int, float, Any, Any]:
    return int(argv[0]), float(argv[1]), json.loads(argv[2]), json.loads(argv[3])


if __name__ == "__main__":
    main(*_arguments(sys.argv[1:]))
