"""Writes the sample document, `docmind/data/How tides work.pdf`: three pages with numbers that can be checked.

Run it after a change: `python docs/sample/how_tides_work.py`. The same script gives the same bytes. Text and drawings
are our own; Sandhaven does not exist.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph, Table, TableStyle

TARGET = Path(__file__).parents[2] / "docmind" / "data" / "How tides work.pdf"
WIDTH, HEIGHT = A4
LEFT, RIGHT, TOP = 68.0, WIDTH - 68.0, HEIGHT - 72.0
INK, MUTED, SEA, DEEP, SAND = (HexColor(c) for c in ("#1f2933", "#61707f", "#bcdcec", "#2f7ea8", "#e9dcc0"))
BODY = ParagraphStyle("body", fontName="Helvetica", fontSize=11.5, leading=17, textColor=INK, spaceAfter=8)
HEADING = ParagraphStyle("heading", BODY, fontName="Helvetica-Bold", fontSize=13, leading=18, spaceAfter=4)
TITLE = ParagraphStyle("title", BODY, fontName="Helvetica-Bold", fontSize=24, leading=30, spaceAfter=2)
UNDER = ParagraphStyle("under", BODY, fontSize=12.5, textColor=MUTED, spaceAfter=14)
CAPTION = ParagraphStyle("caption", BODY, fontSize=9, leading=12, textColor=MUTED)


def main(target: Path = TARGET) -> None:
    """Write the three pages."""
    canvas = Canvas(str(target), pagesize=A4, invariant=1)
    canvas.setTitle("How tides work: a short field guide")
    canvas.setAuthor("DocMind")
    canvas.setSubject("A sample document")
    for number, page in enumerate((page_one, page_two, page_three), start=1):
        page(canvas)
        canvas.setFont("Helvetica", 9)
        canvas.setFillColor(MUTED)
        canvas.drawString(LEFT, 40, "How tides work")
        canvas.drawRightString(RIGHT, 40, f"Page {number} of 3")
        canvas.showPage()
    canvas.save()


def page_one(canvas: Canvas) -> None:
    """What pulls, how often, and where."""
    y = write(canvas, TOP, TITLE, "How tides work")
    y = write(canvas, y, UNDER, "A short field guide for walkers, paddlers and anyone who parks on a beach")
    y = write(canvas, y, HEADING, "Two pulls")
    y = write(
        canvas,
        y,
        BODY,
        "The sea rises and falls because the Moon does not pull on all of the Earth alike. The side that faces the"
        " Moon is pulled a little more than the middle, the far side a little less. The difference stretches the"
        " oceans into two low bulges, one on each side, and the turning Earth carries every coast through both.",
    )
    y = write(
        canvas,
        y,
        BODY,
        "The Sun does the same from much farther away. Its tide-raising force is about 46 percent of the Moon's:"
        " too small to set the rhythm, large enough to change the height from week to week.",
    )
    y = draw_bulges(canvas, y - 6)
    y = write(canvas, y, CAPTION, "Figure 1. The two bulges, drawn far too large. In the open ocean they are about"
              " half a metre high.")  # fmt: skip
    y = write(canvas, y - 6, HEADING, "The clock")
    y = write(
        canvas,
        y,
        BODY,
        "While the Earth turns once, the Moon moves on along its orbit, and a coast needs 24 hours and 50 minutes to"
        " face it again. That is a lunar day. Most coasts have two high waters in it, 12 hours and 25 minutes apart,"
        " so each day's tide comes about 50 minutes later than the day before.",
    )
    y = write(canvas, y, HEADING, "Three kinds of coast")
    write(
        canvas,
        y,
        BODY,
        "On a semidiurnal coast, such as the Atlantic coast of Europe, both high waters of a day are of nearly the same"
        " height. A diurnal coast, such as parts of the Gulf of Mexico, has one high water a day. On a mixed coast,"
        " such as the Pacific coast of North America, there are two of clearly different height. The shape of the"
        " shore decides how much arrives: the Bay of Fundy in Canada sees ranges of up to 16 metres, most of the"
        " Mediterranean less than 0.3 metres.",
    )


def page_two(canvas: Canvas) -> None:
    """Heights over two weeks, and over six hours."""
    y = write(canvas, TOP, HEADING, "Springs and neaps")
    y = write(
        canvas,
        y,
        BODY,
        "At new moon and at full moon, Sun and Moon pull along one line and their tides add up: a spring tide, with"
        " the highest high water and the lowest low water. It has nothing to do with the season. At the half moons"
        " they work across each other and the range is small: a neap tide. Spring tides are 14.8 days apart, and"
        " the sea needs time to follow, so the largest ranges come one to two days after the new or full moon.",
    )
    y = write(
        canvas,
        y,
        BODY,
        "As a rule of thumb a spring range is 20 percent larger than the average range of a place, and a neap range"
        " 20 percent smaller. The largest springs of the year fall near the equinoxes, in March and September.",
    )
    y = write(canvas, y - 4, HEADING, "The rule of twelfths")
    y = write(
        canvas,
        y,
        BODY,
        "The sea does not rise evenly. Between low and high water lie roughly six hours, and in each of them it rises"
        " by so many twelfths of the range: 1, 2, 3, 3, 2, 1. Half of the whole range comes in the third and fourth"
        " hour. That is when a flat beach disappears fastest and when currents in narrow channels are strongest.",
    )
    y = draw_twelfths(canvas, y - 4)
    y = write(
        canvas, y, CAPTION, "Figure 2. Rise in each hour after low water, for a range of 6.0 metres: one twelfth is 0.5"
        " metres."
    )  # fmt: skip
    y = write(canvas, y - 6, HEADING, "Weather moves it too")
    write(
        canvas,
        y,
        BODY,
        "Tide tables assume average air pressure, 1013 hectopascals. For each hectopascal less, the sea stands about"
        " one centimetre higher: a deep low of 973 hectopascals lifts it by 40 centimetres. A strong wind that blows"
        " onto a shallow coast for a day can add a metre and more. This is a storm surge, and it is dangerous when it"
        " meets a spring high water.",
    )


def page_three(canvas: Canvas) -> None:
    """An example to calculate, rules, and words."""
    y = write(canvas, TOP, HEADING, "A day at Sandhaven")
    y = write(
        canvas,
        y,
        BODY,
        "Sandhaven is an invented harbour with a causeway to an island. The causeway lies 2.0 metres above chart"
        " datum: when the sea stands higher than that, it is under water.",
    )
    rows = [
        ["Water", "Time", "Height above chart datum"],
        ["Low water", "06:10", "0.8 m"],
        ["High water", "12:20", "5.6 m"],
        ["Low water", "18:35", "0.9 m"],
        ["High water", "00:45 on the next day", "5.5 m"],
    ]
    table = Table(rows, colWidths=[110, 150, 170], rowHeights=20)
    table.setStyle(
        TableStyle(
            [
                ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", 10),
                ("FONT", (0, 1), (-1, -1), "Helvetica", 10),
                ("TEXTCOLOR", (0, 0), (-1, -1), INK),
                ("LINEBELOW", (0, 0), (-1, -1), 0.5, HexColor("#c9d2da")),
                ("LEFTPADDING", (0, 0), (0, -1), 0),
            ]
        )
    )
    _, height = table.wrap(RIGHT - LEFT, HEIGHT)
    table.drawOn(canvas, LEFT, y - height)
    y = write(
        canvas,
        y - height - 14,
        BODY,
        "How long can you walk? The morning range is 5.6 minus 0.8, that is 4.8 metres, and one twelfth of it is 0.4"
        " metres. After two hours, at about 08:10, the sea has risen by three twelfths: 0.8 plus 1.2 makes 2.0"
        " metres, and the causeway goes under. In the evening it is free again about two hours before low water, from"
        " 16:35. Be on the near side 30 minutes before the calculated time.",
    )
    y = write(canvas, y, HEADING, "Five rules for the shore")
    for number, rule in enumerate(
        (
            "Look up the day's high and low water before you go, and add an hour if the table ignores summer time.",
            "Start a walk across flats on a falling tide, at the latest one hour before low water.",
            "Turn back when the sea starts to rise, not when it reaches you: channels behind you fill first.",
            "Never cut across mud. Go back the way you came.",
            "If you are caught, call 112 in Europe or 911 in North America, and ask for the coastguard.",
        ),
        start=1,
    ):
        y = write(canvas, y + 3, BODY, f"{number}. {rule}")
    y = write(canvas, y - 2, HEADING, "Words")
    for word, meaning in (
        ("Chart datum", "the level from which heights and depths are measured, near the lowest tide of all."),
        ("Range", "the height of high water minus the height of the low water next to it."),
        ("Flood and ebb", "the rising and the falling tide, and the currents that go with them."),
        ("Slack water", "the short time around high or low water when the current nearly stops."),
    ):
        y = write(canvas, y + 3, BODY, f"<b>{word}</b>: {meaning}")


def write(canvas: Canvas, y: float, style: ParagraphStyle, text: str) -> float:
    """Draw a paragraph below `y` (points); returns where the next one may begin."""
    paragraph = Paragraph(text, style)
    _, height = paragraph.wrap(RIGHT - LEFT, HEIGHT)
    if y - height < 56:
        raise ValueError(f"The page is full: {text[:60]}")
    paragraph.drawOn(canvas, LEFT, y - height)
    return y - height - style.spaceAfter


def draw_bulges(canvas: Canvas, y: float) -> float:
    """The Earth in its two bulges, and the Moon."""
    x, middle = LEFT + 160, y - 62
    canvas.setFillColor(SEA)
    canvas.ellipse(x - 92, middle - 46, x + 92, middle + 46, stroke=0, fill=1)
    canvas.setFillColor(SAND)
    canvas.circle(x, middle, 40, stroke=0, fill=1)
    canvas.setFillColor(MUTED)
    canvas.circle(RIGHT - 60, middle, 13, stroke=0, fill=1)
    canvas.setStrokeColor(DEEP)
    canvas.setLineWidth(1.2)
    canvas.line(x + 100, middle, RIGHT - 84, middle)
    for side in (-1, 1):
        canvas.line(RIGHT - 84, middle, RIGHT - 92, middle + 4 * side)
    canvas.setFillColor(INK)
    canvas.setFont("Helvetica", 9.5)
    canvas.drawCentredString(x, middle - 3, "Earth")
    canvas.drawCentredString(RIGHT - 60, middle - 30, "Moon")
    canvas.drawRightString(x - 98, middle - 3, "high water")
    canvas.drawString(x + 98, middle + 8, "high water")
    canvas.drawCentredString(x, middle + 50, "low water")
    return y - 122


def draw_twelfths(canvas: Canvas, y: float) -> float:
    """Six bars, and the curve of the height behind them."""
    bottom, step = y - 118, (RIGHT - LEFT) / 6
    path = canvas.beginPath()
    for n in range(61):
        height = (1 - math.cos(math.pi * n / 60)) / 2 * 104
        (path.lineTo if n else path.moveTo)(LEFT + n * step / 10, bottom + height)
    for hour, twelfths in enumerate((1, 2, 3, 3, 2, 1)):
        left = LEFT + hour * step
        canvas.setFillColor(SEA)
        canvas.rect(left + 8, bottom, step - 16, twelfths * 26, stroke=0, fill=1)
        canvas.setFillColor(INK)
        canvas.setFont("Helvetica-Bold", 10)
        canvas.drawCentredString(left + step / 2, bottom + twelfths * 26 + 5, f"{twelfths * 0.5:.1f} m")
        canvas.setFont("Helvetica", 9)
        canvas.drawCentredString(left + step / 2, bottom - 13, f"hour {hour + 1}")
    canvas.setStrokeColor(DEEP)
    canvas.setLineWidth(1.4)
    canvas.drawPath(path, stroke=1, fill=0)
    return bottom - 24


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
