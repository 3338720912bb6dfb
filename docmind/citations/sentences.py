"""Where sentences, list items, headings and table rows begin and end, in answers and in text read from PDFs.

Also what in an answer is no claim: the model's own marks, refusals, headings, phrases of politeness.
"""

from __future__ import annotations

import re
from typing import Literal

from docmind.citations import words

LineKind = Literal["blank", "rule", "item", "heading", "cells", "row", "prose"]

_ITEM = re.compile(r"[ \t]{0,12}(?:[-*+•‣▪◦●○·–—]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)])[ \t]+(?=\S)")
_RULE = re.compile(r"[\s|:=_*`~+-]{0,400}|[ \t]{0,8}(?:```|~~~)[\w+-]{0,30}\s*")
_LETTERS = re.compile(r"[^\W\d_]")
# What a table cell may hold besides digits: currency, signs, dots of a leader, short dashes.
_CELL = re.compile(r"[\s\d.,$€£¥₹%()+−–—\-*†‡]{0,400}|(?:[\s$(]{0,4})(?:n/?a|nm|usd|eur)(?:[\s)]{0,4})", re.IGNORECASE)
# Two or more numbers at the end of a line, only cell characters between: a row of a table.
_ROW = re.compile(r"[\d%)][\s$€£¥]{1,8}[(\-−–]?[$€£¥]?\d[\d.,]*[%)]*(?:[ \t]*[—–-])*\s*$")
_END = re.compile(r"[.!?…]{1,20}[\"'”’»)\]*_]{0,6}(?:\[\d{1,3}\]){0,8}(?=\s|$)|[。！？｡]{1,20}[\"”’」』）]{0,4}")
_WORD_BEFORE = re.compile(r"(?:[^\W\d_]\.){1,6}$|[^\W_]+$")

_MARK = re.compile(
    r"(?P<lead>[ \t]{0,4})(?:"
    r"\[{1,3}[ ]?(?:(?:evidence|source|passage|citation|document|doc|ref)s?[ ]?[:#]?[ ]?)?\^?"
    r"\d{1,2}(?:[ ]?(?:,|;|-|–|and|&)[ ]?\d{1,2}){0,12}(?:†[^\]\n]{0,40})?[ ]?\]{1,3}(?!\()"
    r"|【[^】\n]{0,10}\d{1,2}[^】\n]{0,40}】"
    r"|\((?:evidence|source|passage|citation|ref)s?[ ]?[:#]?[ ]?\d{1,2}(?:[ ]?(?:,|and|&)[ ]?\d{1,2}){0,12}\)"
    r")",
    re.IGNORECASE,
)
_CODE = re.compile(r"```[^`]{0,20000}```|`[^`\n]{1,400}`")
_SMALL_NUMBER = re.compile(r"\d{1,2}")

_REFUSAL = re.compile(
    r"(?:(?:sorry|unfortunately|i(?:'m| am) sorry)[,.]?[ ](?:but[ ])?)?"
    r"(?:(?:based on|according to|from|in)[ ](?:the|your|this|these)[ ](?:\w+[ ]){0,3}?"
    r"(?:evidence|documents?|context|passages?|text|sources?|information)(?:[ ](?:provided|given|above))?[,:]?[ ])?"
    r"(?:"
    r"(?:that is |this is |it is )?not (?:found )?in (?:your|the) (?:documents?|evidence|library)"
    r"|i (?:cannot|can't|can not|could not|couldn't|(?:was|am) (?:unable|not able) to|do not|don't|did not|didn't) "
    r"(?:find|answer|determine|locate|know|see|tell|have (?:enough|any|the|sufficient)?)\b"
    r"|(?:the |your |this |these )(?:provided |given |available )?"
    r"(?:evidence|documents?|context|passages?|texts?|sources?|information)(?: provided| given)? "
    r"(?:does not|doesn't|do not|don't|did not|didn't) (?:\w+ly )?"
    r"(?:say|mention|contain|provide|state|specify|include|answer|give|tell|indicate|have)\b"
    r"|there is (?:no|not enough|insufficient) (?:\w+ ){0,2}?(?:information|evidence|mention|answer|data)\b"
    r"|no (?:relevant )?(?:information|evidence|answer|mention)(?: \w+){0,6} (?:found|available|given|provided)\b"
    r"|(?:the answer |this |it |that )?(?:cannot|can't|could not) be (?:found|answered|determined)\b"
    r"|(?:the answer |this |it |that )?is not (?:stated|mentioned|given|specified|provided|answered) in (?:the|your)\b"
    r")",
    re.IGNORECASE,
)
_META = re.compile(
    r"(?:here (?:is|are)\b|here's\b|sure\b|certainly\b|of course\b|let me\b|i hope\b|please\b|if you\b|in summary\W*$|"
    r"(?:final )?answer\W*$|thank|hello\b|note\W*$|sources?\b\W*$|references?\W*$)",
    re.IGNORECASE,
)


def _line_kind(line: str) -> LineKind:
    if not line.strip():
        return "blank"
    short = line[:400]
    if len(line) <= 400:
        if _CELL.fullmatch(short) and any(character.isdigit() for character in short):
            return "cells"
        if _RULE.fullmatch(short):
            return "rule"
        if _CELL.fullmatch(short):
            return "cells"
    if short.lstrip().startswith("#"):
        return "heading"
    if _ITEM.match(short):
        return "item"
    if short.lstrip().startswith("|") or (len(line) <= 400 and _ROW.search(line)):
        return "row"
    return "prose"


def blocks(text: str) -> list[tuple[int, int, bool]]:
    """Runs of lines that belong together, (start, end, is_row); a PDF breaks lines inside sentences.

    A line break is a space, except beside a list item, a heading, a table row, a blank line, or a line that
    is short for its paragraph and followed by a capital. A label followed by lines of bare figures is one row.
    """
    found: list[list[int]] = []
    rows: list[bool] = []
    previous: LineKind = "blank"
    previous_text = ""
    width = 0  # the longest line of the paragraph so far
    position = 0
    gap = False  # a blank line lies between
    for line in text.splitlines(keepends=True):
        start, position = position, position + len(line)
        kind = _line_kind(line)
        if kind == "blank":
            gap = True
            continue
        stripped = line.strip()
        if kind == "rule":
            previous, gap = "blank", True
            continue
        if not found or previous == "blank":
            join = False
        elif kind == "cells":
            # Figures under a short label, with or without blank lines between, are one row; it ends somewhere.
            join = (previous == "cells" or len(previous_text) <= 120) and position - found[-1][0] <= 400
            join = join and not previous_text.endswith((".", "!", "?"))
        elif gap or kind in ("item", "heading") or previous in ("cells", "heading", "row"):
            join = False
        elif kind == "row":
            # "Other pension and retiree medical / benefits income 132 522": the label goes on in lower case.
            join = stripped[0].islower()
        else:
            goes_on = stripped[0].islower() or previous_text.endswith((",", "-", ";"))
            is_full = len(previous_text) >= 0.6 * max(width, len(stripped)) and len(previous_text) >= 40
            join = goes_on or (is_full and not previous_text.endswith(":"))
        if join:
            found[-1][1] = position
            rows[-1] = rows[-1] or kind in ("cells", "row")
            width = max(width, len(stripped))
        else:
            found.append([start, position])
            rows.append(kind in ("cells", "row"))
            width = len(stripped)
        previous, previous_text, gap = kind, stripped, False
    return [(start, end, is_row) for (start, end), is_row in zip(found, rows, strict=True)]


def _is_boundary(text: str, start: int, match: re.Match[str], block_end: int) -> bool:
    """Whether the stop found at `match` ends a sentence that began at `start`."""
    stop = match.group()
    if stop[0] in "。！？｡":
        return True
    after = match.end()
    while after < block_end and text[after].isspace():
        after += 1
    if after >= block_end:
        return True
    next_character = text[after]
    if next_character.islower():
        return False
    if stop[0] != "." or stop[1:2] == ".":
        return True
    word_match = _WORD_BEFORE.search(text, max(start, match.start() - 24), match.start())
    if word_match is None:
        return True
    word = word_match.group().rstrip(".").casefold()
    if word.isdigit():
        # "1." at the start is the number of a list item.
        return word_match.start() > start
    next_word = re.match(r"[^\W_]+", text[after : after + 30])
    starts_anew = next_word is not None and next_word.group().casefold() in words.SENTENCE_STARTERS
    if word == "no":
        # "No. 5" goes on; "... and no." ends.
        return not next_character.isdigit() and (starts_anew or word_match.group()[0].islower())
    if word in words.TITLES:
        return False
    if word in words.ABBREVIATIONS or "." in word:
        return starts_anew
    if len(word) == 1 and word_match.group()[0].isupper():
        return starts_anew
    return True


def split_sentences(text: str) -> list[tuple[int, int]]:
    """The sentences, list items, headings and table rows of a text as trimmed (start, end), in order."""
    return [(start, end) for start, end, _ in split_units(text)]


def split_units(text: str) -> list[tuple[int, int, bool]]:
    """As `split_sentences`, with whether the piece is a row of a table."""
    units: list[tuple[int, int, bool]] = []
    for block_start, block_end, is_row in blocks(text):
        start = block_start
        if not is_row:
            for match in _END.finditer(text, block_start, block_end):
                while start < match.start() and text[start].isspace():
                    start += 1
                if match.start() >= start and _is_boundary(text, start, match, block_end):
                    units.append((start, match.end(), False))
                    start = match.end()
        units.append((start, block_end, is_row))
    trimmed: list[tuple[int, int, bool]] = []
    for start, end, is_row in units:
        piece = text[start:end]
        left = len(piece) - len(piece.lstrip())
        right = len(piece.rstrip())
        if right > left:
            trimmed.append((start + left, start + right, is_row))
    return trimmed


def find_marks(answer: str) -> tuple[str, list[tuple[int, tuple[int, ...]]]]:
    """The answer without the model's own marks, and (place in the new text, numbers) for each mark removed."""
    code = [match.span() for match in _CODE.finditer(answer)] if "`" in answer else []
    kept: list[str] = []
    marks: list[tuple[int, tuple[int, ...]]] = []
    done = length = next_code = 0
    for match in _MARK.finditer(answer):
        while next_code < len(code) and code[next_code][1] <= match.start():
            next_code += 1
        if next_code < len(code) and code[next_code][0] <= match.start():
            continue
        start, end = match.span()
        # The text kept so far ends a line, or there is none; marks in a row count as one.
        shown_before = answer[start - 1 : start] if start > done else (kept[-1][-1] if kept else "")
        at_line_start = shown_before in ("", "\n")
        if at_line_start:
            # "[1] The Panthers ..." keeps its indentation, not the space after the mark.
            start = match.end("lead")
            while end < len(answer) and answer[end] in " \t":
                end += 1
        if answer[done:start]:
            kept.append(answer[done:start])
        length += start - done
        marks.append((length, tuple(int(number) for number in _SMALL_NUMBER.findall(match.group())[:16])))
        done = end
    kept.append(answer[done:])
    return "".join(kept), marks


def strip_markers(answer: str) -> str:
    """The answer as it is shown: without the model's own [1], [1, 2] or 【1】, which prove nothing."""
    return find_marks(answer)[0]


def claim_text(sentence: str) -> str:
    """A sentence without list number, heading sign, emphasis and link targets: what it claims."""
    sentence = re.sub(r"\]\([^()\s]{0,500}\)", "] ", sentence)
    sentence = re.sub(r"[*`#>|~\[\]]|(?<![^\W_])_{1,3}|_{1,3}(?![^\W_])", " ", sentence)
    sentence = re.sub(r"^\s{0,20}(?:\d{1,3}[.)]|[-+•‣▪◦●○·–—])[ \t]+(?=\S)", "", sentence)
    # The sentence that opens with Yes or No says in the rest what is meant.
    return re.sub(r"^\s{0,20}(?:yes|no)\s?[,:;.–—]\s", "", sentence, flags=re.IGNORECASE).strip()


def is_refusal(answer: str) -> bool:
    """Whether this says that the documents hold no answer ("Not in your documents.")."""
    text = " ".join(claim_text(answer[:600]).replace("’", "'").split())
    return bool(_REFUSAL.match(text))


def is_talk(sentence: str, *, is_followed: bool) -> bool:
    """Whether a sentence claims nothing: a heading, an announcement, a question, politeness, bare signs.

    Args:
        sentence: As split from the answer.
        is_followed: Whether more text comes after it; a bold line alone may be the whole answer.
    """
    text = claim_text(sentence)
    if not _LETTERS.search(text):
        return not any(character.isdigit() for character in text)
    if any(character.isdigit() for character in text):
        return False
    if text.endswith("?") or _META.match(text):
        return True
    if not is_followed:
        return False
    bare = sentence.strip()
    return bare.startswith("#") or text.endswith(":") or (bare.startswith("**") and bare.rstrip(":").endswith("**"))
