"""Write a comparison as CSV and as LaTeX. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from perennial.evaluation.loss import Change, HeldoutLoss
from perennial.evaluation.seeds import SeededModel, SeededValues, mean_losses
from perennial.evaluation.statistics import Estimate
from perennial.report import compare_tables as tables
from perennial.report.compare import Comparison
from perennial.report.html import Table
from perennial.report.time_steps import MEANS

COLUMNS = (
    "quantity", "run", "model", "rate", "tokens", "against", "against_model", "corpus", "seeds",
    "value", "half_width_95", "stderr", "unit",
)  # fmt: skip
_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
}  # fmt: skip

Line = dict[str, object]


def comparison_csv(comparison: Comparison) -> str:
    """Return a line for each loss, gap and mean over time steps; no corpus is the average of all.

    `half_width_95` is of the interval over seeds, empty for one seed; `stderr` is over held-out
    documents, and is there where every run stands alone.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_loss_lines(comparison))
    writer.writerows(_gap_lines(comparison))
    writer.writerows(_transfer_lines(comparison))
    return text.getvalue()


def _loss_lines(comparison: Comparison) -> Iterator[Line]:
    for group in comparison.groups:
        for model in group:
            means = mean_losses(model, comparison.corpora, comparison.in_nats)
            if means is None:
                continue
            about = _about("loss", model) | {"unit": comparison.unit}
            alone = not comparison.is_seeded and comparison.in_nats
            for corpus, mean in _values(means):
                line = about | {"corpus": corpus} | _estimate(mean)
                known = model.first.losses.get(corpus) if alone else None
                yield line | _stderr(known)


def _gap_lines(comparison: Comparison) -> Iterator[Line]:
    for seed_gap in comparison.seed_gaps:
        other = {"against": seed_gap.theirs.arm, "against_model": seed_gap.theirs.first.name}
        about = _about("gap", seed_gap.ours) | other | {"unit": comparison.unit}
        for corpus, mean in _values(seed_gap.difference):
            yield about | {"corpus": corpus} | _estimate(mean)
    for gap in comparison.gaps:
        other = {"against": gap.theirs.run, "against_model": gap.theirs.name}
        about = _about("gap", SeededModel(gap.ours.run, {0: gap.ours})) | other
        changes: list[tuple[str, Change | None]] = [*gap.corpora.items(), ("", gap.average)]
        for corpus, change in changes:
            if change is not None:
                line = about | {"corpus": corpus, "seeds": 1, "unit": comparison.unit}
                yield line | {"value": change.nats_per_token, "stderr": change.stderr}


def _transfer_lines(comparison: Comparison) -> Iterator[Line]:
    for row in comparison.transfers:
        for name in MEANS:
            mean = row.mean(name)
            kind = "regret" if row.against else "transfer"
            line: Line = {"quantity": f"{kind}, {tables.MEAN_NAMES[name]}", "run": row.arm}
            line |= {"model": row.models, "against": row.against, "unit": "nats per token"}
            yield line | ({"seeds": len(row.by_seed)} if mean is None else _estimate(mean))


def _about(quantity: str, model: SeededModel) -> Line:
    first = model.first
    about: Line = {"quantity": quantity, "run": model.arm, "model": first.name, "rate": first.rate}
    return about | {"tokens": first.tokens}


def _values(values: SeededValues) -> Iterator[tuple[str, Estimate]]:
    yield from values.corpora.items()
    yield "", values.average


def _estimate(mean: Estimate) -> Line:
    return {"seeds": mean.count, "value": mean.mean, "half_width_95": mean.half_width}


def _stderr(loss: HeldoutLoss | None) -> Line:
    return {} if loss is None else {"stderr": loss.stderr_nats_per_token}


def comparison_latex(comparison: Comparison) -> str:
    """Return the losses, the gaps and the means over time steps as tables of booktabs."""
    interval = (
        r"$\pm$: 95\% interval over seeds." if comparison.is_seeded else "One seed."
    )  # fmt: skip
    groups = [tables.losses(comparison, group) for group in comparison.groups]
    caption = f"Held-out loss, {comparison.unit}. {interval} Between two lines: equal tokens."
    parts = [_latex(groups, caption)]
    gaps = tables.gaps(comparison)
    if gaps is not None:
        first = _escape(comparison.arms[0].name)
        how = (
            r"paired by seed. $\pm$: 95\% interval over seeds."
            if comparison.is_seeded
            else r"over paired documents. $\pm$: one standard error over documents."
        )
        lead = f"Held-out loss of {first} minus that of the others at equal tokens, "
        parts.append(_latex([gaps], f"{lead}{comparison.unit}, {how}"))
    transfer = tables.transfer(comparison)
    if transfer is not None:
        caption = "Transfer and regret over time steps (arXiv 2504.02107), nats per token. "
        parts.append(_latex([transfer], caption + interval))
    return "% \\usepackage{booktabs}\n" + "\n".join(parts)


def _latex(groups: Sequence[Table], caption: str) -> str:
    """Return one table with a line between the groups, which have the same columns."""
    columns = groups[0].columns
    places = "".join("r" if column in groups[0].numbers else "l" for column in columns)
    bodies = ["\n".join(_latex_row(row) for row in group.rows) for group in groups]
    lines = [
        r"\begin{table}",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{places}}}",
        r"\toprule",
        _latex_row(columns),
        r"\midrule",
        "\n\\midrule\n".join(bodies),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(_number(cell) for cell in cells) + r" \\"


def _number(cell: str) -> str:
    """Return a cell in LaTeX; a number below 0 has a minus, which is longer than a hyphen."""
    escaped = _escape(cell)
    is_negative = cell[:1] == "-" and cell[1:2].isdigit()
    return f"$-${escaped[1:]}" if is_negative else escaped


def _escape(text: str) -> str:
    return "".join(_ESCAPED.get(letter, letter) for letter in text)
