"""Answer sentences → quotes: the rule by examples, invariants on arbitrary text, rates on real evidence.

`pytest -s tests/test_citations.py -k rates` prints the measured rates.
"""


from __future__ import annotations

import json
import os
import random
import re
import textwrap
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from docmind.citations import Evidence, cite, is_refusal, split_sentences, strip_markers

if TYPE_CHECKING:
    from collections.abc import Callable

PANTHERS = (
    "The Panthers defense gave up just 308 points, ranking sixth in the league, while also leading the NFL in\n"
    "interceptions with 24 and boasting four Pro Bowl selections. Pro Bowl defensive tackle Kawann Short led the\n"
    "team in sacks with 11, while also forcing three fumbles and recovering two. Fellow lineman Mario Addison\n"
    "added 6½ sacks. The Panthers line also featured veteran defensive end Jared Allen, a 5-time pro bowler who\n"
    "was the NFL's active career sack leader with 136, along with defensive end Kony Ealy, who had 5 sacks in\n"
    "just 9 starts."
)
HOW_MANY_POINTS = "How many points did the Panthers defense surrender?"

# As pypdfium2 reads a statement, a row a line; and as other readers do, a cell a line.
ROWS = (
    "Consolidated Statement of Income\n(in millions except per share amounts)\n2022 2021 2020\n"
    "Net Revenue $ 86,392 $ 79,474 $ 70,372\nCost of sales 40,576 37,075 31,797\nGross profit 45,816 42,399 38,575\n"
    "Net interest expense and other (939) (1,863) (1,128)\nNet income 8,978 7,679 7,175\n"
)
CELLS = re.sub(r" (?=[$(\d])", "\n", ROWS.replace("$ ", "$"))


def piece(text: str, number: int = 1, document: str = "report.pdf", start: int = 40) -> Evidence:
    return Evidence(number, f"id-{document}", document, 3, start, start + len(text), text)


def quotes(answer: str, *texts: str, question: str = "", document: str = "report.pdf") -> list[str]:
    """The quotes an answer gets from evidence of these texts."""
    evidence = [piece(text, number, document) for number, text in enumerate(texts, start=1)]
    return [citation.text for citation in cite(answer, evidence, question=question)[1]]


@pytest.mark.parametrize(
    "answer",
    [
        "The Panthers defense surrendered 308 points.",
        "They surrendered 308 points.",
        "The Panthers defense gave up 308 points.",
        "According to the evidence, the Panthers defense gave up just **308** points [1].",
        "The answer is 308.",
        "308",
        "308.",
        "308 points",
        "**308**",
        "- 308 points [2]",
    ],
)
def test_an_answer_that_repeats_the_evidence_is_quoted(answer: str) -> None:
    """Whether or not it is a whole sentence, is marked up, or carries a mark, right or wrong."""
    assert quotes(answer, PANTHERS, question=HOW_MANY_POINTS) == [PANTHERS.split(". Pro")[0] + "."]


@pytest.mark.parametrize(
    "answer",
    [
        "The Panthers defense surrendered 309 points.",
        "The Panthers defense surrendered 24 points.",
        "The Panthers offense gave up 308 points.",
        "The Broncos defense gave up 308 points.",
        "The Panthers defense did not give up 308 points.",
        "The Panthers defense gave up 308% of points.",
        "The Panthers defense gave up 308 million points.",
        "Mario Addison had 136 sacks.",
        "Mario Addison led the team in sacks with 11.",
        "Kawann Short led the team in sacks with 11, while also forcing two fumbles and recovering three.",
        "136",
        "24",
        "Panthers",
        "[1]",
        "The moon is made of green cheese [1].",
    ],
)
def test_an_answer_that_departs_from_the_evidence_is_not_quoted(answer: str) -> None:
    """A changed number, name, noun, unit or negation, or the right number of something else."""
    assert quotes(answer, PANTHERS, question=HOW_MANY_POINTS) == []


@pytest.mark.parametrize(
    ("answer", "evidence", "is_quoted"),
    [
        ("Revenue was 5 million dollars.", "The loss was 5 million dollars.", False),
        ("Revenue was 5 million in 2020.", "Revenue was 7 million and the loss was 5 million in 2020.", False),
        ("Revenue was 7 million in 2020.", "Revenue was 7 million and the loss was 5 million in 2020.", True),
        ("Total staff was 1234 people.", "Total staff was 1,234 people.", True),
        ("Organic sales grew 9.9 percent.", "Organic sales grew 9.9 %.", True),
        ("Organic sales grew 9.9.", "Organic sales grew 9.9 %.", False),
        ("Net debt was $5,000,000 in May.", "Net debt was $5 million in May.", True),
        ("Net debt was €5 million in May.", "Net debt was $5 million in May.", False),
        ("The change in cash was -5 in May.", "The change in cash was 5 in May.", False),
        ("The committee has three members.", "The committee has 3 members.", True),
        ("The committee has four members.", "The committee has 3 members.", False),
        ("The temple took twenty-five years.", "The temple took 25 years.", True),
        ("Organic sales increased by 5% in 2020.", "Organic sales rose by 5% in 2020.", True),
        ("Organic sales fell by 5% in 2020.", "Organic sales rose by 5% in 2020.", False),
        ("Denver won the final game.", "Denver lost the final game.", False),
        ("The bridge opened before the war.", "The bridge opened after the war.", False),
        ("Acme never paid a dividend.", "Acme paid a dividend.", False),
        ("Acme paid a dividend.", "Acme failed to pay a dividend.", False),
        ("Acme did not pay a dividend.", "Acme has never paid a dividend.", True),
        ("Acme not only paid a dividend.", "Acme paid a dividend.", True),
        ("Acme will raise its dividend.", "Acme might raise its dividend.", False),
        ("An increase is unlikely this year.", "An increase is likely this year.", False),
        ("Denver beat Carolina in the final.", "Carolina beat Denver in the final.", False),
        ("Sales of Acme rose in Q2.", "Sales of Acme rose in the second quarter.", True),
        ("Sales of Acme rose in FY2023.", "Sales of Acme rose in FY 2023.", True),
        ("Sales of Acme rose in Q3.", "Sales of Acme rose in Q2.", False),
        ("The production of the 777X is paused.", "Production of the 777X is currently paused.", True),
        ("The 787X production is currently paused.", "Production of the 777X is currently paused.", False),
        ("The example proves a high-speed train.", "The exam-\nple proves a high-\nspeed train.", True),
        ("The cafe in Paris is famous.", "The café in Paris is famous.", True),
        ("The treaty was signed in Versailles on 28 June 1919.", "It was signed in Versailles on 28 June 1919.", False),
    ],
)
def test_numbers_names_and_sense_must_agree(answer: str, evidence: str, is_quoted: bool) -> None:
    """One difference a row."""
    assert bool(quotes(answer, evidence)) is is_quoted


@pytest.mark.parametrize("table", [ROWS, CELLS], ids=["a row a line", "a cell a line"])
def test_a_table_row_takes_its_year_from_the_header(table: str) -> None:
    """The claim's number must stand in the column of its year; row and header are both cited."""
    found = quotes("Net revenue was $86,392 million in 2022.", table)
    assert len(found) == 2
    assert found[0].startswith("Net Revenue")
    assert "2022" in found[1]
    assert len(quotes("Net income was $7,679 million in 2021.", table)) == 2
    for wrong in (
        "Net revenue was $79,474 million in 2022.",
        "Net revenue was $40,576 million in 2022.",
        "Cost of sales was $86,392 million in 2022.",
        "Net revenue was $86,392 billion in 2022.",
        "Net revenue was $86,392 million in 2019.",
    ):
        assert quotes(wrong, table) == [], wrong


def test_parentheses_are_minus_in_a_table_and_an_aside_in_prose() -> None:
    """(939) in a statement is not +939 unless the claim says expense, loss or the like; (118) in prose is 118."""
    assert quotes("Net interest expense and other was $939 million.", ROWS)
    assert not quotes("Operating profit was 939 in total sales.", "Operating profit from sales (939) (1,863) (1,128)\n")
    assert quotes("Luke Kuechly led the team in tackles with 118.", "Luke Kuechly led the team in tackles (118).")


def test_a_name_may_come_from_the_title_or_from_the_sentence_before() -> None:
    """Under a pronoun the quote goes on about the paragraph's subject; a document is about its own name."""
    text = "Nikola Tesla was an inventor. He demonstrated wireless lighting at Chicago in 1893."
    assert quotes("Tesla demonstrated wireless lighting at Chicago in 1893.", text)
    assert not quotes("Edison demonstrated wireless lighting at Chicago in 1893.", text)
    text = "The company declared a dividend of $4.60 per share."
    assert quotes("PepsiCo declared a dividend of $4.60 per share.", text, document="PepsiCo_2022.pdf")
    assert not quotes("Boeing declared a dividend of $4.60 per share.", text, document="PepsiCo_2022.pdf")


def test_a_claim_made_of_two_neighbouring_sentences_is_quoted_with_both() -> None:
    """The quote then spans them, and is still one piece of the page."""
    text = "The bridge opened in 1932. It carries eight lanes of road traffic. Trains use it too."
    assert quotes("The bridge opened in 1932 and carries eight lanes of road traffic.", text) == [
        "The bridge opened in 1932. It carries eight lanes of road traffic."
    ]


def test_the_subject_of_one_sentence_is_not_given_the_deeds_of_the_next() -> None:
    """Two sentences may be told in turn, not crossed."""
    assert not quotes("Kawann Short added 6½ sacks to the total.", PANTHERS)
    assert not quotes("Organic revenue fell 5% in May.", "Organic revenue rose. Labour costs fell 5% in May.")


def test_citations_are_numbered_by_first_use_and_a_quote_has_one_number() -> None:
    """The second use of a quote repeats its number."""
    one, two = "The river is 800 miles long.", "The dam was built in 1936."
    answer = f"{two} {one} {two}"
    sentences, citations = cite(answer, [piece(one, 1), piece(two, 2)])
    assert [sentence.citations for sentence in sentences] == [(1,), (2,), (1,)]
    assert [(citation.number, citation.text) for citation in citations] == [(1, two), (2, one)]


def test_a_mark_of_the_model_only_decides_between_equals() -> None:
    """Two passages say the same: the marked one is cited. A mark on a passage that does not say it changes nothing."""
    same = "The dam was built in 1936."
    evidence = [piece(same, 1, "a.pdf"), piece(same, 2, "b.pdf"), piece("Nothing of the kind.", 3, "c.pdf")]
    for mark, document in (("", "a.pdf"), (" [1]", "a.pdf"), (" [2]", "b.pdf"), ("【2】", "b.pdf"), (" [3]", "a.pdf")):
        assert cite(f"{same[:-1]}{mark}.", evidence)[1][0].document == document
        assert cite(f"{same}{mark}", evidence)[1][0].document == document


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("308 points [1].", "308 points."),
        ("308 points.[1] More [1, 2][3].", "308 points. More."),
        ("308【1†source】 points", "308 points"),
        ("[1] 308 points", "308 points"),
        ("308 points (Evidence 2).", "308 points."),
        ("308 points [Source 1].", "308 points."),
        ("308 points [[1]]", "308 points"),
        ("In [2023] he led in tackles (118).", "In [2023] he led in tackles (118)."),
        ("See [1](https://example.org).", "See [1](https://example.org)."),
        ("Use `a[1]` here.", "Use `a[1]` here."),
        ("[1]", ""),
        ("", ""),
    ],
)
def test_marks_of_the_model_are_not_shown(answer: str, shown: str) -> None:
    """[1], [1, 2], 【1】 and (Evidence 1) go; years, counts, links and code stay."""
    assert strip_markers(answer) == shown


@pytest.mark.parametrize(
    "answer",
    [
        "Not in your documents.",
        "I cannot find this in the documents.",
        "I couldn't find any mention of it.",
        "The evidence does not say when the bridge was built.",
        "Based on the provided evidence, there is no information about the bridge.",
        "Sorry, but the documents don't mention the bridge.",
        "The provided context does not contain the answer.",
        "The answer cannot be determined from the evidence.",
    ],
)
def test_a_refusal_is_known_and_needs_no_proof(answer: str) -> None:
    """It is no claim and gets no citation, even if the evidence holds its words."""
    assert is_refusal(answer)
    sentences, citations = cite(answer, [piece(answer)])
    assert [(sentence.support, sentence.is_claim) for sentence in sentences] == [("none", False)]
    assert citations == []


@pytest.mark.parametrize(
    "answer",
    [
        "The company does not say when it will pay.",
        "The treaty cannot be found unlawful by a court.",
        "No dividend was paid.",
        "The board did not mention the merger.",
        "In the documents of 1919 the border was moved.",
        "308",
        "",
    ],
)
def test_a_claim_with_a_negation_is_no_refusal(answer: str) -> None:
    """Refusals speak of the evidence, not of the world."""
    assert not is_refusal(answer)


def test_what_claims_nothing_is_not_flagged() -> None:
    """Headings, announcements, questions and rules are no claims; a heading with a number is one."""
    answer = (
        "# Results\n\nHere is the answer:\n\n**Details**\n\n---\n\nIs that all?\n\nThe moon is cheese.\n\n## 12 moons"
    )
    flagged = [sentence.text for sentence in cite(answer, [piece(PANTHERS)])[0] if sentence.is_claim]
    assert flagged == ["The moon is cheese.", "## 12 moons"]
    assert cite("**Kurt Coleman**", [piece(PANTHERS)])[0][0].is_claim


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Dr. No met J. Smith of Acme Inc. in the U.S. in Jan. 2020. He left.", 2),
        ("It cost 3.5 million. In 2015. The end.", 3),
        ("She works in the U.S. The city is large.", 2),
        ("He asked “why?” and left. “It is late.” Then silence.", 3),
        ("See No. 5, Fig. 3, e.g. this one, vs. that.", 1),
        ("1. First item\n2. Second item\n- third\n* fourth", 4),
        ("A sentence that the page breaks\nin the middle goes on here. Another.", 2),
        ("A long line of running text that fills the width of its column and breaks before\nParis, then ends.", 1),
        ("SHORT HEADING\nThe paragraph begins here and runs on for quite a while in this line.", 2),
        ("今日は晴れ。明日は雨。", 2),
        ("Really?! Yes... and no. Done!", 3),
        ("| Item | 2022 |\n|---|---|\n| Sales | 5 |", 2),
        ("```\nThe value is 5.\n```", 1),
        ("Net sales 14,189 14,082\nGross margin 4,506 5,063\n", 2),
        ("Net sales\n14,189\n14,082\nGross margin\n4,506\n5,063\n", 2),
        ("", 0),
        (" \n\n ", 0),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, pieces: int) -> None:
    """Abbreviations, decimals, initials, lists, broken lines, quotation marks, CJK, tables."""
    found = [text[start:end] for start, end in split_sentences(text)]
    assert len(found) == pieces, found


# Text as PDFs and models produce it, and as nobody does.
WORDS = st.sampled_from(
    (
        "The~Panthers~defense~gave~up~308~points~.~in~2015~,~exam-\nple~not~9.9~%~$5~million~(939)~\u00a0~\n~\n\n"
        '~U.S.~é~日本。~[1]~【2】~**~- ~|~# ~`~```~\u200f~\u202e~\u00ad~½~Q2~revenue~rose~fell~1,234~:~;~?~!~"~’'
        "~Net~sales~2022 2021~\t~\x00"
    ).split("~")
)
TEXTS = st.one_of(
    st.lists(WORDS, max_size=60).map(" ".join),
    st.lists(WORDS, max_size=60).map("".join),
    st.text(max_size=200),
)
FAST = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FAST
@given(answer=TEXTS, texts=st.lists(TEXTS, max_size=3), question=TEXTS)
def test_every_quote_is_cut_letter_for_letter_from_the_page(answer: str, texts: list[str], question: str) -> None:
    """Also: sentences are slices of the answer as shown, in order; numbers run 1, 2, …; no quote without "quoted"."""
    page = "".join(texts)
    evidence, at = [], 0
    for number, text in enumerate(texts, start=1):
        evidence.append(Evidence(number, "d", "d.pdf", 1, at, at + len(text), text))
        at += len(text)
    # The evidence as the answer makes quotes likely.
    for said in (answer, *texts):
        sentences, citations = cite(said, evidence, question=question)
        shown = strip_markers(said)
        assert all(citation.text == page[citation.start : citation.end] for citation in citations)
        assert all(citation.text == citation.text.strip() != "" for citation in citations)
        assert all(len(citation.text) <= 800 for citation in citations)
        assert all(shown[sentence.start : sentence.end] == sentence.text for sentence in sentences)
        ends = [0, *(end for sentence in sentences for end in (sentence.start, sentence.end))]
        assert ends == sorted(ends)
        assert [citation.number for citation in citations] == list(range(1, len(citations) + 1))
        used = [number for sentence in sentences for number in sentence.citations]
        assert list(dict.fromkeys(used)) == list(range(1, len(citations) + 1))
        assert all((sentence.support == "quoted") is bool(sentence.citations) for sentence in sentences)
        assert (sentences, citations) == cite(said, evidence, question=question)


@FAST
@given(text=TEXTS)
def test_splitting_loses_nothing_but_blanks_and_rules(text: str) -> None:
    """Every letter and digit outside a rule is in exactly one piece."""
    found = split_sentences(text)
    assert all(start < end for start, end in found)
    assert all(one[1] <= other[0] for one, other in pairwise(found))
    inside = {position for start, end in found for position in range(start, end)}
    lines = [(match.start(), match.group()) for match in re.finditer(r"[^\n]+", text)]
    for start, line in lines:
        if "```" in line or "~~~" in line:
            continue
        assert all(start + i in inside for i, letter in enumerate(line) if letter.isalnum()), line


@pytest.mark.parametrize(
    "unit",
    ["a", "[", "[1]", "[[1]1]", ".", "1,11", "1,111,", "9", "\n", "*", "`", "A. ", "a-\n", "a'", "|-", "_a", "(", "](",
     "$ ", "based on the ", "日本。", "e\u0301", "【", "\x00\u202e", "The Panthers gave up 308 points. ",
     "308 points ", "12 34\n"],
)  # fmt: skip
def test_runaway_output_costs_linear_time(unit: str) -> None:
    """100,000 characters of anything, as answer, as evidence, as question."""
    text = unit * (100_000 // len(unit))
    start = time.perf_counter()
    cite(text, [piece(PANTHERS)], question=text)
    cite("The Panthers gave up 308 points.", [piece(text)])
    is_refusal(text)
    # Measured at most 2 s on two busy cores; a quadratic pattern takes minutes.
    assert time.perf_counter() - start < 20


# --- Rates on real evidence -----------------------------------------------------------------------------------------

DATA = Path(os.environ.get("DOCMIND_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data") / "qa"
needs_data = pytest.mark.skipif(
    not (DATA / "xquad.jsonl").is_file(), reason=f"no test data in {DATA}; set DOCMIND_TEST_DATA"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A sentence of real evidence, the passage it is from, and the passages of other documents."""

    sentence: str
    document: str
    passage: str


def passages(name: str) -> dict[str, str]:
    """Passage → document, XQuAD re-wrapped at 88 columns as a PDF would break it."""
    found: dict[str, str] = {}
    for line in (DATA / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for text in row["evidence"]:
            if name.startswith("xquad"):
                text = "\n".join(textwrap.wrap(text, 88, break_on_hyphens=False))
            found.setdefault(text[:3000], row["doc"])
    return found


def samples(found: dict[str, str], count: int) -> list[Sample]:
    """Whole sentences of at least seven words, no table rows."""
    every = [
        Sample(sentence, document, text)
        for text, document in found.items()
        for start, end in split_sentences(text)
        if 40 <= len(sentence := " ".join(text[start:end].split())) <= 400
        and sentence.endswith(".") and sentence[0].isupper() and len(sentence.split()) >= 7
        and sum(character.isdigit() for character in sentence) < len(sentence) / 4
    ]  # fmt: skip
    return random.Random(7).sample(every, min(count, len(every)))


def numbered(found: dict[str, str], texts: list[str]) -> list[Evidence]:
    return [piece(text, number, found[text]) for number, text in enumerate(texts, start=1)]


def is_proven(answer: str, evidence: list[Evidence], question: str = "") -> bool:
    """Whether every sentence of the answer is quoted."""
    sentences, _ = cite(answer, evidence, question=question)
    return bool(sentences) and all(sentence.support == "quoted" for sentence in sentences)


Change = "Callable[[str, random.Random], str | None]"
NUMBER = re.compile(r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?(?![\w,]*\d)")
YEAR = re.compile(r"\b(?:1\d|20)\d\d\b(?![,.]\d)")
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}\b")
NUMBER_WORDS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
PAIRS = """increased decreased|increase decrease|increases decreases|rose fell|higher lower|more less|before after
won lost|largest smallest|first last|north south|northern southern|eastern western|east west|above below|began ended
positive negative|early late|larger smaller|greater smaller|accepted rejected|strong weak|highest lowest|most least
gain loss|old new|best worst|always never|bought sold|growth decline|favorable unfavorable|grew declined
including excluding|likely unlikely|improved worsened|success failure|male female|long short|oldest youngest"""
OPPOSITE = {a: b for pair in re.split(r"[|\n]", PAIRS) for a, b in [pair.split(), pair.split()[::-1]]}


def _replaced(sentence: str, match: re.Match[str], by: str) -> str:
    return sentence[: match.start()] + by + sentence[match.end() :]


def _pick(pattern: re.Pattern[str], sentence: str, rng: random.Random) -> re.Match[str] | None:
    found = list(pattern.finditer(sentence))
    return rng.choice(found) if found else None


def change_number(sentence: str, rng: random.Random) -> str | None:
    found = [match for match in NUMBER.finditer(sentence) if not YEAR.fullmatch(match.group())]
    if not found:
        return None
    match = rng.choice(found)
    at = rng.choice([i for i, character in enumerate(match.group()) if character.isdigit()])
    digit = str(1 + (int(match.group()[at]) + rng.randint(0, 7)) % 9)
    return _replaced(sentence, match, match.group()[:at] + digit + match.group()[at + 1 :])


def change_year(sentence: str, rng: random.Random) -> str | None:
    match = _pick(YEAR, sentence, rng)
    return match and _replaced(sentence, match, str(int(match.group()) + rng.choice([-3, -2, -1, 1, 2, 3])))


def change_number_word(sentence: str, rng: random.Random) -> str | None:
    match = _pick(re.compile(rf"\b(?:{'|'.join(NUMBER_WORDS)})\b"), sentence, rng)
    return match and _replaced(sentence, match, rng.choice([word for word in NUMBER_WORDS if word != match.group()]))


def change_name(names: list[str]) -> Change:
    def change(sentence: str, rng: random.Random) -> str | None:
        match = _pick(NAME, sentence, rng)
        others = [name for name in names if name[:4] not in sentence]
        return _replaced(sentence, match, rng.choice(others)) if match and others else None

    return change


def add_not(sentence: str, rng: random.Random) -> str | None:
    auxiliary = re.compile(
        r"\b(?:is|are|was|were|had been|has been|can|could|will|would|did|does|must)\b(?! (?:not|never|no)\b)"
    )
    match = _pick(auxiliary, sentence, rng)
    return match and _replaced(sentence, match, match.group() + " not")


def drop_not(sentence: str, rng: random.Random) -> str | None:
    negation = re.compile(
        r"\b(?:not|never) (?!only|just)|(?<=\w)n['’]t\b(?! only)|\b(?:no|without) (?!longer)(?=[a-z])"
    )
    match = _pick(negation, sentence, rng)
    return match and _replaced(sentence, match, "")


def flip(sentence: str, rng: random.Random) -> str | None:
    match = _pick(re.compile(rf"\b(?:{'|'.join(OPPOSITE)})\b"), sentence, rng)
    return match and _replaced(sentence, match, OPPOSITE[match.group()])


def swap(pattern: re.Pattern[str]) -> Change:
    def change(sentence: str, rng: random.Random) -> str | None:
        found = list(pattern.finditer(sentence))
        if len({match.group() for match in found}) < 2:
            return None
        first, second = sorted(rng.sample(found, 2), key=lambda match: match.start())
        middle = sentence[first.end() : second.start()]
        return sentence[: first.start()] + second.group() + middle + first.group() + sentence[second.end() :]

    return change


def drop_last_clause(sentence: str, rng: random.Random) -> str | None:
    clauses = re.split(r", (?!\d)", sentence[:-1])
    kept = ", ".join(clauses[:-1])
    return kept + "." if len(kept.split()) >= 6 and not re.search(r"\d, \d", sentence) else None


def move_first_clause(sentence: str, rng: random.Random) -> str | None:
    match = re.match(r"((?:In|During|On|By|After|Since|Before|At|From|Under) [^,]{3,60}), ([^\d].+)\.$", sentence)
    return match and f"{match[2][0].upper()}{match[2][1:]} {match[1][0].lower()}{match[1][1:]}."


def report(name: str, hits: int, total: int) -> float:
    print(f"{name:34s} {hits:5d} of {total:5d}  {hits / max(total, 1):.3f}")
    return hits / max(total, 1)


@pytest.fixture(scope="module")
def real() -> list[tuple[Sample, list[Evidence], list[Evidence]]]:
    """(sentence, its passage among seven others, eight passages of other documents)."""
    rng = random.Random(3)
    made = []
    for name, count in (("xquad.jsonl", 220), ("financebench.jsonl", 80)):
        found = passages(name)
        for sample in samples(found, count):
            others = rng.sample([text for text in found if text != sample.passage], 7)
            foreign = rng.sample([text for text, document in found.items() if document != sample.document], 8)
            others.insert(rng.randrange(8), sample.passage)
            made.append((sample, numbered(found, others), numbered(found, foreign)))
    return made


@needs_data
def test_rates_of_sentences_that_repeat_the_evidence(real: list) -> None:
    """The sentence itself, marked up, introduced, shortened or turned round, is quoted."""
    same: Change = lambda sentence, rng: sentence  # noqa: E731
    forms: dict[str, tuple[Change, float]] = {
        "the sentence itself": (same, 0.99),
        "as a bold list item with a mark": (lambda sentence, rng: f"- **{sentence}** [1]", 0.99),
        "after 'According to the document'": (lambda sentence, rng: f"According to the document, {sentence}", 0.98),
        "without its last clause": (drop_last_clause, 0.97),
        "first clause moved to the end": (move_first_clause, 0.8),
    }
    print()
    for name, (form, least) in forms.items():
        rng = random.Random(1)
        said = [(form(sample.sentence, rng), evidence) for sample, evidence, _ in real]
        proven = [is_proven(answer, evidence) for answer, evidence in said if answer]
        assert report(f"quoted: {name}", sum(proven), len(proven)) >= least


@needs_data
def test_rates_of_mutated_sentences(real: list) -> None:
    """One number, year, name, negation or opposite changed: none; also what the issue does not ask for."""
    names = sorted({match.group() for sample, _, _ in real for match in NAME.finditer(sample.sentence)})
    rng = random.Random(2)
    changes: dict[str, tuple[Callable[[Sample], Change], float]] = {
        "number": (lambda sample: change_number, 0.98),
        "year": (lambda sample: change_year, 0.98),
        "number word": (lambda sample: change_number_word, 0.98),
        "name": (lambda sample: change_name(names), 0.97),
        "'not' added": (lambda sample: add_not, 0.98),
        "'not' dropped": (lambda sample: drop_not, 0.95),
        "opposite": (lambda sample: flip, 0.97),
        "(name of the same passage)": (
            lambda sample: change_name(sorted({match.group() for match in NAME.finditer(sample.passage)})), 0.93),
        "(two numbers swapped)": (lambda sample: swap(NUMBER), 0.95),
        "(two names swapped)": (lambda sample: swap(NAME), 0.9),
    }  # fmt: skip
    caught = total = 0
    print()
    for name, (change_for, least) in changes.items():
        said = [
            (changed, evidence)
            for sample, evidence, _ in real
            for _ in range(2)
            if (changed := change_for(sample)(sample.sentence, rng)) and changed != sample.sentence
        ]
        none = [not any(sentence.support == "quoted" for sentence in cite(answer, evidence)[0])
                if len(split_sentences(answer)) == 1 else not is_proven(answer, evidence)
                for answer, evidence in said]  # fmt: skip
        assert report(f"none: {name}", sum(none), len(none)) >= least
        if not name.startswith("("):
            caught, total = caught + sum(none), total + len(none)
    assert report("none: all that the issue asks for", caught, total) >= 0.97


@needs_data
def test_rates_of_sentences_from_other_documents(real: list) -> None:
    """A sentence the evidence does not hold is not quoted."""
    none = [not is_proven(sample.sentence, foreign) for sample, _, foreign in real]
    assert report("none: other documents", sum(none), len(none)) >= 0.99


@needs_data
def test_rates_of_bare_answers() -> None:
    """The labelled answer alone is quoted more often than not; that of another question of the passage less often."""
    rng = random.Random(5)
    found = passages("xquad.jsonl")
    by_words = {" ".join(text.split()): text for text in found}
    rows = [json.loads(line) for line in (DATA / "xquad.jsonl").read_text(encoding="utf-8").splitlines()]
    right, wrong, wrong_numbers = [], [], []
    for row in rows:
        passage = by_words[" ".join(row["evidence"][0].split())[:3000].strip()]
        evidence = numbered(found, [*rng.sample([text for text in found if text != passage], 7), passage])
        right.append(is_proven(row["answer"], evidence, row["question"]))
        for other in rows:
            same = other["answer"].lower() in row["answer"].lower() or row["answer"].lower() in other["answer"].lower()
            if other["evidence"] != row["evidence"] or same:
                continue
            proven = is_proven(other["answer"], evidence, row["question"])
            wrong.append(proven)
            if row["answer"][0].isdigit() and other["answer"][0].isdigit():
                wrong_numbers.append(proven)
    print()
    assert report("quoted: the bare right answer", sum(right), len(right)) >= 0.8
    # A bare name is shown with its sentence; that it answers the question is not proven, hence the loose bounds.
    assert report("quoted: a wrong one, same passage", sum(wrong), len(wrong)) <= 0.4
    assert report("quoted: a wrong number, same passage", sum(wrong_numbers), len(wrong_numbers)) <= 0.2


@needs_data
def test_ten_sentences_against_eight_passages_take_milliseconds(real: list) -> None:
    """With the passages read; reading eight takes about as long once, before the model speaks."""
    _, evidence, _ = real[0]
    answer = " ".join(" ".join(each.text[start:end].split())
                      for each in evidence for start, end in split_sentences(each.text)[:2])  # fmt: skip
    cite(answer, evidence)
    start = time.perf_counter()
    for _ in range(5):
        cite(answer, evidence)
    milliseconds = (time.perf_counter() - start) * 200
    print(f"\n{len(split_sentences(answer))} sentences, 8 passages: {milliseconds:.1f} ms")
    # 5 ms measured; the bound leaves room for a busy machine.
    assert milliseconds < 100
