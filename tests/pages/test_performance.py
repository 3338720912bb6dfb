"""The Performance page in each of its states, and the strip of the sidebar."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import streamlit as st
from fake_nvml import CARD, Error, fake_nvml, process
from streamlit.testing.v1 import AppTest
from waiting import PATIENCE_SECONDS

from docmind import hardware, metrics, runs
from docmind.library import Library
from pages.parts.safe import plain

REPOSITORY = Path(__file__).parents[2]
POISON = "![x](http://evil.example/x.png) :red[*model*] <img src=http://evil.example/y.png>"
STRIP = "import streamlit as st\nfrom pages.parts.panel import draw_strip\nwith st.sidebar:\n    draw_strip()\n"


@pytest.fixture(autouse=True)
def nothing_cached():
    """The caches of Streamlit outlive a test."""
    st.cache_resource.clear()
    st.cache_data.clear()
    yield
    st.cache_resource.clear()
    st.cache_data.clear()


@pytest.fixture
def page(tmp_path):
    """Opens the page in an app of its own, as a visitor would, with the strip beside it."""

    def open_page():
        script = tmp_path / "small_app.py"
        path = REPOSITORY / "pages" / "performance.py"
        script.write_text(f"{STRIP}st.navigation([st.Page({str(path)!r})]).run()\n", encoding="utf-8")
        return AppTest.from_file(str(script), default_timeout=PATIENCE_SECONDS).run()

    return open_page


def use_gpus(monkeypatch, *cards, **more):
    """Puts GPUs into this machine, as far as NVIDIA's module is asked."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(*cards, **more))


def add_answers(library, model="smollm2-135m-instruct", count=3, **timings):
    """Answers in the library."""
    for number in range(count):
        run_id = runs.start_run(library, "answer")
        figures = {"retrieval_s": 0.2, "first_token_s": 1.0 + number, "total_s": 4.0, "prompt_tokens": 1200,
                   "answer_tokens": 30, "tokens_per_second": 70.0, **timings}  # fmt: skip
        runs.add_event(library, run_id, "receipt", {"finished": "complete", "model": model, "backend": "llama.cpp",
                                                    "profile": model, "timings": figures, "citations": 1})  # fmt: skip
        runs.finish_run(library, run_id, "complete")


def texts(app):
    """Everything on the page that is drawn as markdown."""
    drawn = [*app.markdown, *app.caption, *app.title, *app.subheader, *app.error]
    return [element.value for element in drawn] + [text for m in app.metric for text in (m.label, m.value)]


def charts(app):
    """The charts of the page."""
    return app.get("vega_lite_chart") or app.get("arrow_vega_lite_chart")


def test_before_the_first_answer_the_page_says_what_it_will_show(page, library, monkeypatch):
    """The machine is shown, and no empty charts and tables of answers."""
    use_gpus(monkeypatch, init=12)
    app = page()
    assert not app.exception
    assert [element.value for element in app.subheader] == ["No answers yet"]
    assert len(app.dataframe) == 0
    assert len(charts(app)) == 2, "processor and memory"
    assert not app.get("download_button")


def test_without_a_gpu_processor_and_memory_are_shown_and_why(page, library, monkeypatch):
    """One sentence, and the strip names processor and memory."""
    use_gpus(monkeypatch, init=12)  # NVML_ERROR_LIBRARY_NOT_FOUND
    app = page()
    assert [metric.label.split(" · ")[0] for metric in app.metric] == ["Processor", "Memory"]
    assert app.metric[1].value.endswith(" GB")
    if sys.platform != "darwin":
        assert hardware.NO_DRIVER in texts(app)
    assert "CPU – % · RAM " in app.sidebar.caption[0].value, "the first reading has none before it"
    assert "DocMind " in "".join(texts(app))
    assert " GB free" in "".join(texts(app))


def test_a_gpu_is_shown_first(page, library, monkeypatch):
    """Use, memory, temperature, power and memory by process; no sentence about its absence."""
    use_gpus(monkeypatch, {**CARD, "nvmlDeviceGetComputeRunningProcesses": [
        process(2**22 + number, 1_000_000_000 * number) for number in range(1, 6)
    ]})  # fmt: skip
    app = page()
    assert not app.exception
    assert [metric.value for metric in app.metric[:2]] == ["41 %", "5.2/16 GB"]
    assert app.metric[0].label == "GPU use · NVIDIA GeForce RTX 4070"
    (details,) = [text for text in texts(app) if "°C" in text]
    lines = [line.strip() for line in details.splitlines()]
    assert lines == ["64 °C · 212 W", f"process {2**22 + 5} 5.0 GB", f"process {2**22 + 4} 4.0 GB",
                     f"process {2**22 + 3} 3.0 GB", "2 more 3.0 GB"]  # fmt: skip
    assert app.sidebar.caption[0].value.endswith("GPU 41 % · 5.2/16 GB")
    assert len(charts(app)) == 4
    assert not [text for text in texts(app) if "driver" in text]


def test_what_a_gpu_does_not_tell_is_a_dash_with_a_reason(page, library, monkeypatch):
    """Nothing on the page fails for it; a name can do nothing either."""
    lost = Error(15)  # NVML_ERROR_GPU_IS_LOST
    use_gpus(monkeypatch, {**CARD, "nvmlDeviceGetName": POISON, "nvmlDeviceGetPowerUsage": Error(3)},
             dict.fromkeys(CARD, lost))  # fmt: skip
    app = page()
    assert not app.exception
    drawn = "\n".join(texts(app))
    assert "64 °C · – W" in drawn
    assert "Power is not known: not supported by this GPU" in drawn
    assert "Memory is not known: the GPU is lost\\: restart the machine" in drawn
    assert app.metric[2].value == "– %"
    assert app.metric[3].value == "–"
    assert app.metric[0].label == f"GPU use · {plain(POISON)}"
    assert "![" not in drawn
    assert app.sidebar.caption[0].value.endswith("2 GPUs 41 % · 5.2/16 GB")


def test_answers_are_charted_by_model_and_listed(page, library, monkeypatch):
    """Two charts more, a table with units, a download with every answer."""
    use_gpus(monkeypatch, init=12)
    add_answers(library)
    add_answers(library, "qwen3-4b", count=1, first_token_s=None, tokens_per_second=None)
    app = page()
    assert not app.exception
    assert [element.value for element in app.subheader] == ["Models on this machine", "Answers"]
    assert len(charts(app)) == 4
    table = app.dataframe[0].value
    assert list(table["Model"]) == ["qwen3-4b", *["smollm2-135m-instruct"] * 3]
    assert list(table["First word"])[1:] == [3.0, 2.0, 1.0]
    assert table["First word"].isna()[0]
    assert "the target of 3.0 s" in "".join(texts(app))
    (button,) = app.get("download_button")
    assert button.proto.label == "Download as CSV"


def test_answers_that_never_came_to_a_word_have_no_chart(page, library, monkeypatch):
    """The page says so instead of drawing an empty one."""
    use_gpus(monkeypatch, init=12)
    add_answers(library, count=2, first_token_s=None, tokens_per_second=None)
    app = page()
    assert not app.exception
    assert len(charts(app)) == 2
    assert texts(app).count("No answer has come to its first word yet.") == 2


def test_names_of_models_can_do_nothing_on_the_page(page, library, monkeypatch):
    """They stand in cells and charts, where nothing is markdown, and nowhere else."""
    use_gpus(monkeypatch, init=12)
    add_answers(library, POISON)
    app = page()
    assert not app.exception
    assert list(app.dataframe[0].value["Model"]) == [POISON] * 3
    assert not [text for text in texts(app) if "evil" in text]


def test_the_table_is_bounded_and_the_download_is_not(page, library, monkeypatch):
    """More answers than the page lists: it says so."""
    use_gpus(monkeypatch, init=12)
    add_answers(library, count=203)
    app = page()
    assert len(app.dataframe[0].value) == 200
    assert "The last 200 answers; the download has all of them." in texts(app)
    assert len(metrics.answers(library, 100_000)) == 203


def test_a_damaged_library_is_an_error_with_a_hint(page, config, monkeypatch):
    """The machine is shown all the same."""
    use_gpus(monkeypatch, CARD)
    Library(config)
    config.database.write_bytes(b"no database at all" * 1000)
    app = page()
    assert not app.exception
    assert len(app.error) == 1
    assert "damaged" in app.error[0].value
    assert app.metric[0].value == "41 %"
