"""Untrusted text → markdown that can do nothing: no link, picture, icon, formula, colour or HTML on any surface.

`plain` is for names and messages (one line, nothing but letters), `answer` for what a model wrote (paragraphs, lists,
bold, tables, headings and code stay). What the page may load is limited a second time by the Content-Security-Policy;
this file is what keeps the words readable and the screen ours.

The screen's markdown is CommonMark with tables, math, directives (`:red[…]`), and passes that work on text *after* its
backslashes are gone: autolinks, `:emoji:`, `:material/icon:`, arrows. A backslash stops the former; the latter only see
a word joiner (U+2060) that stands inside what they look for, which nobody sees and a pasted address survives.
Source: StreamlitMarkdown of streamlit 1.67, micromark, mdast-util-gfm-autolink-literal.

Not every surface is markdown: cells of `st.dataframe`, options of `st.selectbox` and placeholders show text as it is,
and need neither.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_JOINER: Final = "\u2060"
_JOINERS_OF_SCRIPTS: Final = "\u200c\u200d"  # Persian, Hindi and family emoji need them
_MARKS_IN_A_ROW: Final = 4  # combining marks on one letter; more are there to cover the lines around

# ---- Names and messages -----------------------------------------------------------------------------------------

_ONE_LINE = re.compile(
    r"(?P<joined>https?://|www(?=\.)|:(?=material/|[\w+-]+:)|@(?=[\w-]))"
    r"|(?P<list>^(?:\d{1,9}(?=[.)])|(?=[-+])))"
    r"|(?P<arrow>(?<!\S)[<>~-](?=(?:->|>|-|=)(?!\S)))"  # "->" and "--" would become other letters
    r"|(?P<sign>[]!#$&*:<=>@[\\_`{|}~])",
    re.IGNORECASE | re.ASCII,
)
_SIGNS = re.compile(r"[]!#$&*:<=>@[\\_`{|}~]")
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def plain(text: str, *, limit: int = 200) -> str:
    """An untrusted name or message as one line of inert markdown, for every label, caption, toast and table cell.

    Args:
        text: Anything: a file name, a title, an error of another program.
        limit: Characters shown at most, cut with "…"; counted before anything is escaped.
    """
    return _ONE_LINE.sub(_inert_sign, _one_line(text, limit))


def plain_with_code(text: str, *, limit: int = 500) -> str:
    """An untrusted message inert like `plain`, what stands between two backticks shown as code: a command to copy.

    Not for cells of a table: a bar in code would end them.
    """
    pieces = _CODE.split(_one_line(text, limit))
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            pieces[place] = _ONE_LINE.sub(_inert_sign, piece)
        else:  # a backslash is a letter in code, so nothing is escaped there
            pieces[place] = f"`{_inert_code(piece, is_cell=False)}`" if piece.strip() else f"\\`{piece}\\`"
    return "".join(pieces)


def _one_line(text: str, limit: int) -> str:
    """What shows of a text, in one line that is not longer than the limit."""
    # More than 8 times the limit cannot be needed, and normalising a megabyte would take its time.
    words = " ".join("".join(_visible(text[: 8 * limit + 64])).split())
    return words if len(words) <= limit else words[: limit - 1].rstrip() + "…"


def _visible(text: str) -> Iterator[str]:
    """The characters of a name that show: no controls, no direction marks, no tower of accents."""
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if category in ("Cc", "Zl", "Zp"):
            yield " "
        elif category == "Cs":
            yield "\ufffd"  # half a character of a file name that is not Unicode
        elif marks <= _MARKS_IN_A_ROW and (category != "Cf" or character in _JOINERS_OF_SCRIPTS):
            yield character


def _inert_sign(found: re.Match[str]) -> str:
    match found.lastgroup:
        case "joined":
            return _escaped(found[0]) + _JOINER
        case "list":
            return found[0] + "\\"
        case "arrow":
            return _escaped(found[0]) + _JOINER
    return "\\" + found[0]


def _escaped(text: str) -> str:
    return _SIGNS.sub(r"\\\g<0>", text)


# ---- What a model wrote -----------------------------------------------------------------------------------------

# Each becomes one character, so that offsets stay: controls a blank, what only steers the direction a joiner.
_CLEANED: Final = (
    {code: " " for code in [*range(32), *range(0x7F, 0xA0), 0x2028, 0x2029] if code not in (9, 10, 13)}
    | dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF, *range(0xE0000, 0xE0080)], _JOINER)
    | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
)
_LINE = re.compile(r"([^\r\n]*)(?:\r\n|\r|\n|\Z)")
_QUOTED = re.compile(r"[ \t]*((?:>[ \t]?)+)")
_ITEM = re.compile(r"([-*+]|\d{1,9}[.)])[ \t]+(?=\S)")
_FENCE = re.compile(r"(`{3,})([^`]*)\Z|(~{3,})(.*)\Z")
_LANGUAGE = re.compile(r"\s*(\w{1,20})", re.ASCII)
_HEADING = re.compile(r"#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*\Z")
_RULE = re.compile(r"([-*_])(?:[ \t]*\1){2,}[ \t]*\Z")
_UNDERLINE = re.compile(r"(?:-+|=+)[ \t]*\Z")  # makes a large heading of the line above
_COLUMNS = re.compile(r"[|:\- \t]*[|:][|:\- \t]*\Z")  # the line below the head of a table, and nothing else
_LAST_BAR = re.compile(r"(?<!\\)\|[ \t]*\Z")
_TICKS = re.compile(r"`+")

_TOKEN = re.compile(
    r"(?P<joined>https?\\?:\\?/\\?/|www(?=\\?\.)|\\?:(?=material\\?/|(?:\w|\\?[-+_])+\\?:)|\\?@(?=[\w-]))"
    r"|(?P<escape>\\[!-/:-@\[-`{-~])"
    r"|(?P<ticks>`+)"
    r"|(?P<sign>[]!$&:<@[\\~])"
    r"|(?P<stars>\*+)"
    r"|(?P<text>[^]!$&:<@[\\~*`hw]+|[hw])",
    re.IGNORECASE | re.ASCII,
)
_IN_CODE = re.compile(r":(?=material/)")
# What would come alive in code that a table cuts into cells. Only then is code touched: it is there to be copied.
_IN_CUT_CODE = re.compile(r"](?=[(\[])|<|https?://|www(?=\.)|@|:(?=\w)|\$", re.IGNORECASE)


def answer(text: str) -> str:
    """What a model wrote, or as much of it as has come, as markdown that can do nothing.

    Paragraphs, lists, emphasis, tables, quotations and code stay; headings become a bold line. Everything else is
    shown as the letters it is written with. Pieces that were cut at blanks may be treated one by one and joined: each
    is inert by itself and beside the others, an open code fence is closed. But a piece does not know that it lies in
    a code fence or a table that began before it, so the whole text looks better; to put citations into it, use
    `answer_with_chips`.
    """
    return answer_with_chips(text, ())


def answer_with_chips(text: str, ends: Sequence[tuple[int, str]]) -> str:
    """What a model wrote, inert like `answer`, with live markdown of our own at given places.

    Args:
        text: As the model wrote it, or as much of it as has come.
        ends: (offset in `text`, markdown put there), for instance (sentence end, " [:blue-badge[1]](#cite-7-1)"); a
            space between words and chip is part of the markdown. Of several at one offset the first comes first.
            Inside code the chip waits for its end, in a row of a table it goes into the last cell, and after a
            heading's line it stands behind the bold.
    """
    return _Writer(text.translate(_CLEANED), sorted(ends, key=lambda end: end[0])).written()


class _Writer:
    """One pass over the lines of an answer."""

    def __init__(self, text: str, chips: Sequence[tuple[int, str]]) -> None:
        self._text = text
        self._lines = [found.span(1) for found in _LINE.finditer(text)]
        if len(self._lines) > 1 and text[-1] not in "\r\n":
            self._lines.pop()  # the empty match behind the last line
        self._chips = list(chips)
        self._out: list[str] = []
        self._content = 0  # where the text of the latest list item begins, 0 outside lists
        self._is_table = False  # the line before belongs to a table, or is its head
        self._wants_gap = False  # the line before was a heading

    def written(self) -> str:
        index = 0
        while index < len(self._lines):
            index = self._write_line(index)
        self._out[-1] += self._chips_until(max(len(self._text), *(offset for offset, _ in self._chips), 0))
        return "\n".join(self._out)

    # Lines --------------------------------------------------------------------------------------------------------

    def _write_line(self, index: int) -> int:
        """Writes the line, or the whole code block that begins there; returns the line that follows."""
        start, end = self._lines[index]
        quoted = _QUOTED.match(self._text, start, end)
        depth = quoted[1].count(">") if quoted else 0
        body = self._text[quoted.end() if quoted else start : end]
        if depth or not body.strip():
            self._is_table = False
        if not body.strip():
            self._out.append(("> " * depth or body) + self._chips_until(end))
            return index + 1
        indent = len(body.expandtabs(4)) - len(body.expandtabs(4).lstrip())
        position = end - len(body.lstrip())
        markers = ""
        while (item := _ITEM.match(self._text, position, end)) and not _RULE.match(self._text, position, end):
            markers += item[1] + " "
            position = item.end()
        is_after_blank = not self._out or not self._out[-1].strip()
        lead = self._lead(depth, indent, markers, is_after_blank=is_after_blank) + markers
        content = self._text[position:end]

        if opened := _FENCE.match(content):
            if markers:
                self._out.append(lead.rstrip().replace("-", "*"))  # a lonely "-" makes a heading of the line above
            return self._write_fence(index + 1, opened, depth, indent + len(markers))
        if self._wants_gap and not is_after_blank and not markers:
            self._out.append("> " * depth)
        self._wants_gap = False
        if heading := _HEADING.match(content):
            if not is_after_blank and not lead.strip():
                self._out.append("")
            self._out.append(self._heading(lead, heading, position, end))
            self._is_table, self._wants_gap = False, True
        elif _COLUMNS.match(content) and self._is_table and not markers:
            self._out.append(lead + content)  # a chip that is due here comes in the next row
        elif _RULE.match(content) and not markers and not depth:
            self._out.append("***")  # "---" would make a heading of the line above
        elif _UNDERLINE.match(content) or _COLUMNS.match(content) or not content.strip("# \t"):
            self._out.append(f"{lead}\\{content}{self._chips_until(end)}")
        else:
            self._is_table = self._is_table or (not depth and self._is_head(index))
            bar = _LAST_BAR.search(self._text, position, end) if self._is_table else None
            self._out.append(lead + self._inline(position, end, bar.start() if bar else end))
        return index + 1

    def _lead(self, depth: int, indent: int, markers: str, *, is_after_blank: bool) -> str:
        """What stands before a line: an indent that keeps it in its list, but never so large that it would be code."""
        if depth:
            self._content = 0
            return "> " * depth
        if is_after_blank and not markers and indent < self._content:
            self._content = indent if indent >= 2 else 0
        indent = min(indent, self._content + 3)
        if markers:
            self._content = indent + len(markers)
        return " " * indent

    def _is_head(self, index: int) -> bool:
        """Whether the next line makes this one the head of a table."""
        if index + 1 == len(self._lines):
            return False
        columns = _COLUMNS.match(self._text, *self._lines[index + 1])
        return columns is not None and "-" in columns[0]

    def _heading(self, lead: str, heading: re.Match[str], position: int, end: int) -> str:
        """A bold line: a heading is loud, jumps while it is written, and is a link to itself."""
        chips, self._chips = self._chips, []
        start, stop = position + heading.start(1), position + heading.end(1)
        title = self._inline(start, stop, stop, is_title=True).strip()
        self._chips = chips
        chip = self._chips_until(end)
        return f"{lead}**{title}**{chip}" if title else f"{lead}\\{heading[0]}{chip}"

    def _write_fence(self, index: int, opened: re.Match[str], depth: int, indent: int) -> int:
        """Writes a code block at the left edge, where no list or quotation can end it early.

        Args:
            index: The line below the one that opens it.
            indent: So many columns the block stands to the right.
        """
        fence, info = opened[1] or opened[3], opened[2] if opened[1] else opened[4]
        closing = re.compile(rf"[ \t]*{re.escape(fence[0])}{{{len(fence)},}}[ \t]*\Z")
        code: list[str] = []
        while index < len(self._lines):
            start, end = self._lines[index]
            line = self._text[start:end]
            if depth:
                quoted = _QUOTED.match(line)
                if quoted is None:
                    break
                line = line[quoted.end() :]
            index += 1
            if closing.match(line):
                break
            blanks = len(line) - len(line.lstrip(" "))
            code.append(_IN_CODE.sub(":" + _JOINER, line[min(blanks, indent) :]))
        language = found[1] if (found := _LANGUAGE.match(info)) else ""
        if language.casefold() == "mermaid":
            language = "text"  # a drawing loads pictures
        ticks = "`" * max([3, *(len(run) + 1 for run in _TICKS.findall("\n".join(code)))])
        # Always on lines of its own, also when the piece before this one ended in the middle of a line.
        self._out += ["", ticks + language, *code, ticks, self._chips_until(self._lines[index - 1][1])]
        self._content, self._is_table, self._wants_gap = 0, False, False
        return index

    # Inside a line ------------------------------------------------------------------------------------------------

    def _inline(self, start: int, end: int, last: int, *, is_title: bool = False) -> str:
        """Characters [start, end) of a line; a chip due behind `last` comes there already."""
        text = self._text
        due = [(min(offset, last), chip) for offset, chip in self._chips if offset <= end]
        del self._chips[: len(due)]
        due.reverse()
        pieces: list[str] = []
        runs: dict[int, list[int]] | None = None
        position = start
        while position < end:
            while due and due[-1][0] <= position:
                pieces.append(due.pop()[1])
            found = _TOKEN.match(text, position, end)
            assert found, "every character belongs to a token"
            token, position = found[0], found.end()
            match found.lastgroup:
                case "joined":
                    token = re.sub(r"\\?([:@])", r"\\\1", token) + _JOINER
                case "sign":
                    token = "\\" + token
                case "stars" if is_title and len(token) > 1:
                    token = ""  # all of it is bold
                case "ticks":
                    if runs is None:
                        runs = _runs_of_ticks(text, position, end)
                    while runs.get(len(token)) and runs[len(token)][-1] < position:
                        runs[len(token)].pop()
                    if runs.get(len(token)):
                        closer = runs[len(token)].pop()
                        position, code = closer + len(token), text[position:closer]
                        token += _inert_code(code, is_cell=self._is_table) + token
                    else:
                        token = "\\`" * len(token)
                case "text" if due and due[-1][0] < position:
                    position = due[-1][0]
                    token = token[: position - found.start()]
            pieces.append(token)
        pieces += [chip for _, chip in reversed(due)]
        return "".join(pieces)

    def _chips_until(self, offset: int) -> str:
        """The chips due up to an offset, which are then no longer due."""
        due = [chip for place, chip in self._chips if place <= offset]
        del self._chips[: len(due)]
        return "".join(due)


def _runs_of_ticks(text: str, start: int, end: int) -> dict[int, list[int]]:
    """Where runs of backticks begin, by their length, the first one last."""
    runs: dict[int, list[int]] = {}
    for found in reversed([*_TICKS.finditer(text, start, end)]):
        runs.setdefault(len(found[0]), []).append(found.start())
    return runs


def _inert_code(code: str, *, is_cell: bool) -> str:
    """Code between backticks. A bar in it would end a table's cell, unless it wears a backslash there."""
    code = _IN_CODE.sub(":" + _JOINER, code)
    if is_cell:
        return re.sub(r"(?<!\\)((?:\\\\)*)\|", r"\1\\|", code)
    if "|" in code:  # it may lie in a table that began in a piece of the answer before this one
        return _IN_CUT_CODE.sub(lambda found: found[0] + _JOINER, code)
    return code
