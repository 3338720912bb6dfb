"""Pages → passages: a partition of the page, none longer than the embedding model reads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import TextNode

from docmind.config import Config
from docmind.embed import load_tokenizer
from docmind.passages import PassageSplitter, embedded_text, split_page

PROSE = "The quay was repaired in October. It cost 3.7 million euros.\nThe pilots waited.\n\n"
ODD_WORDS = [
    "internationalisation",
    "x" * 90,
    "한국어문장입니다",
    "漢字",
    "…",
    "3.14",
    "\n\n",
    "a\u0301",
    "ﷺ",
    "İ",
    "\f",
    "\x1c",
    ". ",
    " ",
    "🙂",
    "base64/AAbb+==",
    "donaudampfschifffahrt",
]


def tokens(text):
    """How many tokens the embedding model counts, without its two markers."""
    return len(load_tokenizer().encode(text, add_special_tokens=False).ids)


def check_partition(text, budget):
    """Joined, the passages are the page; each is within the budget."""
    spans = split_page(text, budget)
    assert "".join(text[start:end] for start, end in spans) == (text if text.strip() else "")
    if spans:
        assert spans[0][0] == 0
        assert spans[-1][1] == len(text)
        assert all(a[1] == b[0] for a, b in pairwise(spans))
    for start, end in spans:
        assert start < end
        assert tokens(text[start:end]) <= budget or end - start == 1
    return spans


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=300), budget=st.integers(1, 12))
def test_joining_the_passages_restores_any_page(text, budget):
    """Any Unicode, at a budget so small that every rule of cutting is met."""
    check_partition(text, budget)


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.sampled_from(ODD_WORDS), max_size=150).map("".join), budget=st.integers(20, 60))
def test_words_that_are_hard_to_cut_stay_within_the_budget(text, budget):
    """Scripts without spaces, letters of several tokens, words longer than a passage."""
    check_partition(text, budget)


@pytest.mark.parametrize("text", ["", " ", "\n\n\t", "\u3000"], ids=["empty", "space", "lines", "wide space"])
def test_a_page_without_visible_text_has_no_passages(text):
    """Nothing to find, nothing to embed."""
    assert split_page(text, 100) == []


def test_a_short_page_is_one_passage():
    """No cut without need."""
    assert split_page(PROSE, 254) == [(0, len(PROSE))]


def test_cuts_fall_where_sentences_end():
    """A page of sentences is not cut inside one."""
    text = "".join(f"Sentence number {n} says little. " for n in range(200))
    spans = check_partition(text, 100)
    assert len(spans) > 5
    assert all(text[start:end].endswith("little. ") for start, end in spans)


def test_an_empty_line_is_the_best_cut():
    """Paragraphs are kept together when they fit."""
    paragraph = "word " * 60
    text = f"{paragraph.strip()}\n\n{paragraph.strip()}"
    (_, cut), _ = check_partition(text, 100)
    assert text[:cut].endswith("\n\n")


def test_the_last_passage_is_no_crumb():
    """Equal shares: a page slightly too long becomes two halves."""
    text = "word " * 260
    spans = check_partition(text, 254)
    assert len(spans) == 2
    assert min(tokens(text[start:end]) for start, end in spans) > 60


@pytest.mark.parametrize(
    "title",
    ["", "Short", "A very long file name " * 30, "漢字" * 120, "x" * 255],
    ids=["none", "short", "long", "wide", "one word"],
)
def test_no_passage_is_longer_than_the_model_reads_title_included(title):
    """254 tokens and the model's two markers are 256; what is longer would be cut without a word."""
    limit = Config(home=Path()).passage_tokens
    page = TextNode(text=PROSE * 60, metadata={"title": title, "page": 3})
    nodes = PassageSplitter(passage_tokens=limit)([page])
    assert len(nodes) > 3
    for node in nodes:
        assert tokens(node.get_content()) <= limit
        text = page.text[node.metadata["start"] : node.metadata["end"]]
        assert node.get_content() == embedded_text(title, text)
        assert node.get_content().endswith(text)
        assert node.metadata["page"] == 3
        assert node.metadata["title"] == title


def test_the_model_reads_title_and_text_and_no_metadata():
    """LlamaIndex would write "page: 3" in front of the text it embeds."""
    from llama_index.core.schema import MetadataMode

    (node,) = PassageSplitter()([TextNode(text="Some text.", metadata={"title": "Title", "page": 3})])
    assert node.get_content(metadata_mode=MetadataMode.EMBED) == "Title\nSome text."


def test_offsets_are_code_points_of_the_page():
    """Characters beyond the basic plane count once."""
    text = "🙂 smile. " * 200
    for start, end in check_partition(text, 50):
        assert text[start:end].startswith("🙂")
