"""The one normalisation of document text. What it yields is what is stored, cut, embedded, searched and cited.

The rules, applied in this order:

1. A surrogate pair becomes its character; a lone surrogate becomes U+FFFD, so that the text encodes to UTF-8.
2. U+FFFE, U+FFFF and the other non-characters become U+FFFD.
3. CR LF and a lone CR become LF; U+0085, U+2028 and U+2029 too; a vertical tab is a space.
4. The remaining control characters go (NUL, which SQLite and C cut at, among them), but tab, LF and form feed;
   so do the invisible U+00AD (soft hyphen), U+FEFF and U+2060.
5. The non-breaking spaces U+00A0, U+2007 and U+202F become a space.
6. The Latin ligatures U+FB00 to U+FB06 become their letters. Nothing else of NFKC: it would turn 2² into 22.
7. Blanks (space, tab) at the end of a line go.

Normalising twice changes nothing. `normalise` serves text that has no boxes, `normalise_codes` the text of a PDF,
where every character must remain tied to its box; a test holds them equal.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPLACEMENT: Final = 0xFFFD
_LIGATURES: Final = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
_DROPPED: Final = (
    [code for code in range(0x20) if code not in b"\t\n\x0b\x0c\r"]
    + [code for code in range(0x7F, 0xA0) if code != 0x85]
    + [0xAD, 0x2060, 0xFEFF]
)
_NEW_LINES: Final = (0x0D, 0x85, 0x2028, 0x2029)
_SPACES: Final = (0x0B, 0xA0, 0x2007, 0x202F)
_NON_CHARACTERS: Final = [*range(0xFDD0, 0xFDF0)] + [
    plane + low for plane in range(0, 0x110000, 0x10000) for low in (0xFFFE, 0xFFFF)
]

_TRANSLATION: Final[dict[int, int | str | None]] = {
    **dict.fromkeys(_DROPPED),
    **dict.fromkeys(_NEW_LINES, 0x0A),
    **dict.fromkeys(_SPACES, 0x20),
    **dict.fromkeys(_NON_CHARACTERS, REPLACEMENT),
    **dict.fromkeys(range(0xD800, 0xE000), REPLACEMENT),
    **_LIGATURES,
}
# Tried only where blanks begin: otherwise a line of a million blanks would be tried a million times.
_TRAILING_BLANKS: Final = re.compile(r"(?<![ \t])[ \t]++(?=\n|\Z)")
_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_GONE: Final = 0x110000  # no character has this number

# (65536,) uint32: what each character of the basic plane becomes; ligatures are marked by themselves.
_TABLE: Final = np.arange(0x10000, dtype=np.uint32)
for _code, _becomes in _TRANSLATION.items():
    if _code < 0x10000 and not isinstance(_becomes, str):
        _TABLE[_code] = _GONE if _becomes is None else _becomes


def normalise(text: str) -> str:
    """`text` by the rules of this module."""
    text = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return _TRAILING_BLANKS.sub("", text.replace("\r\n", "\n").translate(_TRANSLATION))


def normalise_codes(codes: NDArray[np.uint32]) -> tuple[str, NDArray[np.intp]]:
    """The normalised text of character codes, and where each of its characters comes from.

    Args:
        codes: (n,) uint32, code points; surrogate pairs are allowed.

    Returns:
        The text, of m characters, and (m,) intp: the index into `codes` of each.
    """
    source = np.arange(len(codes))
    if len(codes) == 0:
        return "", source
    codes, source = _join_surrogates(codes, source)
    codes = _translate(codes)
    kept = codes != _GONE
    codes, source = codes[kept], source[kept]
    codes, source = _expand_ligatures(codes, source)
    kept = ~_trailing_blanks(codes)
    codes, source = codes[kept], source[kept]
    return codes.astype("<u4").tobytes().decode("utf-32-le"), source


def _join_surrogates(
    codes: NDArray[np.uint32], source: NDArray[np.intp]
) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """Pairs become one character that comes from the first of the two."""
    high = (codes >= 0xD800) & (codes < 0xDC00)
    if not high.any():
        return codes, source
    low = (codes >= 0xDC00) & (codes < 0xE000)
    pair = np.flatnonzero(high[:-1] & low[1:])
    codes = codes.copy()
    codes[pair] = 0x10000 + ((codes[pair] - 0xD800) << 10) + (codes[pair + 1] - 0xDC00)
    return np.delete(codes, pair + 1), np.delete(source, pair + 1)


def _translate(codes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Rules 1 to 5, one code for one code; what goes becomes `_GONE`."""
    basic = codes < 0x10000
    becomes = np.where(basic, _TABLE[np.where(basic, codes, 0)], codes)
    becomes[~basic & (((codes & 0xFFFE) == 0xFFFE) | (codes > 0x10FFFF))] = REPLACEMENT
    becomes[:-1][(codes[:-1] == 0x0D) & (codes[1:] == 0x0A)] = _GONE  # the CR of a CR LF
    return becomes


def _expand_ligatures(
    codes: NDArray[np.uint32], source: NDArray[np.intp]
) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """A ligature becomes its letters, each coming from the one glyph."""
    found = np.flatnonzero((codes >= 0xFB00) & (codes <= 0xFB06))
    if len(found) == 0:
        return codes, source
    times = np.ones(len(codes), dtype=np.intp)
    letters = [_LIGATURES[int(code)] for code in codes[found]]
    times[found] = [len(word) for word in letters]
    first = np.cumsum(times) - times  # where each old character begins in the new text
    codes, source = np.repeat(codes, times), np.repeat(source, times)
    for index, word in zip(found, letters, strict=True):
        codes[first[index] : first[index] + len(word)] = [ord(letter) for letter in word]
    return codes, source


def _trailing_blanks(codes: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """(n,) bool: a space or tab with nothing but such between it and the end of its line."""
    blank = (codes == 0x20) | (codes == 0x09)
    n = len(codes)
    # For each position, the next one that is not blank (n when there is none).
    following = np.minimum.accumulate(np.where(blank, n, np.arange(n))[::-1])[::-1]
    ends = np.append(codes == 0x0A, True)
    trailing: NDArray[np.bool_] = blank & ends[following]
    return trailing
