"""Performance: what the machine is doing now, how fast each model answers here, and the figures of every answer."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import streamlit as st

from docmind import metrics
from docmind.errors import DocMindError
from pages.parts.frame import config, library, show_error
from pages.parts.panel import draw_panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from docmind.metrics import AnswerFigures

SHOWN = 200  # answers
EXPORTED = 100_000
ROW_PIXELS = 44  # of one model in a chart


def main() -> None:
    """The page, from top to bottom."""
    st.title("Performance", anchor=False)
    draw_panel()
    st.space("small")
    try:
        answers = metrics.answers(library(), SHOWN)
    except DocMindError as error:
        show_error(error)
        return
    if not answers:
        st.subheader("No answers yet", anchor=False)
        st.write("Ask a question, and this page shows how long each model takes to begin and how fast it writes.")
        return
    draw_models(answers)
    st.space("small")
    draw_answers(answers)


def draw_models(answers: Sequence[AnswerFigures]) -> None:
    """First token and tokens per second: a dot for each answer, the median of each model, the target."""
    st.subheader("Models on this machine", anchor=False)
    models = metrics.by_model(answers)
    target = config().first_token_target_seconds
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("Seconds to the first word", help="From the question, with search and loading. Less is better.")
        _draw_dots(answers, models, "first_token_seconds", "s", target)
    with right:
        st.markdown("Tokens per second while writing", help="More is better.")
        _draw_dots(answers, models, "tokens_per_second", "tokens/s", None)
    st.caption(f"A dot is an answer, a bar the median of the model, the dashed line the target of {target:.1f} s.")


def _draw_dots(
    answers: Sequence[AnswerFigures], models: Sequence[metrics.ModelFigures], field: str, unit: str,
    target: float | None,
) -> None:  # fmt: skip
    """One chart; says so when no answer has the figure."""
    rows = [
        {"model": answer.model, "value": getattr(answer, field)}
        for answer in answers
        if answer.model is not None and getattr(answer, field) is not None
    ]
    if not rows:
        st.caption("No answer has come to its first word yet.")
        return
    order = [model.model for model in models if getattr(model, field) is not None]
    x = {"field": "value", "type": "quantitative", "title": unit, "scale": {"domainMin": 0}}
    y = {"field": "model", "type": "nominal", "title": None, "sort": order, "axis": {"labelLimit": 150}}
    tooltip = [
        {"field": "model", "type": "nominal", "title": "Model"},
        {"field": "value", "type": "quantitative", "title": unit, "format": ".1f"},
    ]
    layer: list[dict[str, Any]] = [
        {
            "mark": {"type": "circle", "size": 60, "opacity": 0.45},
            "encoding": {"x": x, "y": y, "tooltip": tooltip},
        },
        {
            "mark": {"type": "tick", "thickness": 3, "size": 26},
            "encoding": {"x": {**x, "aggregate": "median"}, "y": y},
        },
    ]
    if target is not None:
        layer.append({
            "data": {"values": [{"target": target}]},
            "mark": {"type": "rule", "strokeDash": [5, 4], "color": "gray"},
            "encoding": {"x": {"field": "target", "type": "quantitative"}},
        })  # fmt: skip
    st.vega_lite_chart(
        {"data": {"values": rows}, "layer": layer},
        height=64 + ROW_PIXELS * len(set(order)),
        alt=f"{unit} of each answer by model",
    )


def draw_answers(answers: Sequence[AnswerFigures]) -> None:
    """The table, newest first, and its download."""
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    left.subheader("Answers", anchor=False)
    right.download_button(
        "Download as CSV",
        data=lambda: metrics.as_csv(metrics.answers(library(), EXPORTED)),
        file_name="docmind-answers.csv",
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",
        width="stretch",
    )
    st.dataframe([_row(answer) for answer in answers], hide_index=True, column_config=_COLUMNS, placeholder="–")
    if len(answers) == SHOWN:
        st.caption(f"The last {SHOWN} answers; the download has all of them.")


_COLUMNS: dict[str, Any] = {
    "When": st.column_config.DatetimeColumn(format="D MMM, HH:mm", width=105),
    "Model": st.column_config.TextColumn(width=165),
    "Ended": st.column_config.TextColumn(width=75),
    "First word": st.column_config.NumberColumn(
        format="%.1f s", width=80, help="Seconds from the question to the first word"
    ),
    "Speed": st.column_config.NumberColumn(format="%.1f tok/s", width=90, help="Tokens per second while writing"),
    "Total": st.column_config.NumberColumn(format="%.1f s", width=60),
    "Read": st.column_config.NumberColumn(format="localized", width=60, help="Tokens of the prompt"),
    "Wrote": st.column_config.NumberColumn(format="localized", width=60, help="Tokens of the answer"),
    "Quotes": st.column_config.NumberColumn(width=65, help="Quotes that prove the answer"),
    "Search": st.column_config.NumberColumn(format="%.1f s", width=65),
    "Profile": st.column_config.TextColumn(width=80),
}


def _row(answer: AnswerFigures) -> dict[str, Any]:
    """A row of the table. Cells are no markdown: names need no escaping."""
    return {
        # In the clock of this machine, which is the person's.
        "When": datetime.fromisoformat(answer.started_at).astimezone().replace(tzinfo=None),
        "Model": answer.model,
        "Ended": answer.finished,
        "First word": answer.first_token_seconds,
        "Speed": answer.tokens_per_second,
        "Total": answer.total_seconds,
        "Read": answer.prompt_tokens,
        "Wrote": answer.answer_tokens,
        "Quotes": answer.citations,
        "Search": answer.retrieval_seconds,
        "Profile": answer.profile,
    }


main()
