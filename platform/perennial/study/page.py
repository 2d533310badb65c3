"""Write the page of a study: Markdown, with its pictures beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from textwrap import wrap
from typing import TYPE_CHECKING

from perennial.report.figures.study import claim_intervals, contender_losses
from perennial.store import open_store
from perennial.study.plan import overrides_of
from perennial.study.results import AVERAGE, Judgement, StudyResults

if TYPE_CHECKING:
    from perennial.evaluation.statistics import Estimate
    from perennial.store import Store

PAGE = "study.md"
_DIGEST_LETTERS = 12
_WIDTH = 100
_VERDICTS = {
    "holds": "**holds**",
    "does not hold": "**does not hold**",
    "not decided": "not decided at this size",
}


def write_page(results: StudyResults, output: Path | None) -> str:
    """Write the page and its pictures.

    Args:
        results: of the study.
        output: a local file; None: that of the study file, else in the study's place.

    Returns:
        Where the page is.
    """
    spec = results.study.spec
    target = output or (Path(spec.page) if spec.page else None)
    place = open_store(spec.place if target is None else target.absolute().parent)
    name = PAGE if target is None else target.name
    pictures = _draw(results, PurePosixPath(name).stem)
    for file, data in pictures.items():
        place.write(file, data)
    place.write(name, render(results, tuple(pictures)).encode())
    return _url(place, name)


def _url(place: Store, name: str) -> str:
    return f"{place.url.rstrip('/')}/{name}"


def _columns(results: StudyResults) -> list[str]:
    return [*results.corpora, *([AVERAGE] if len(results.corpora) > 1 else [])]


def _estimates(results: StudyResults, contender: str) -> dict[str, Estimate]:
    """Return the mean loss of a contender by column."""
    found_by_column = {
        column: results.estimate(contender, column if column == AVERAGE else f"loss/{column}")
        for column in _columns(results)
    }
    return {column: value for column, value in found_by_column.items() if value is not None}


def _draw(results: StudyResults, stem: str) -> dict[str, bytes]:
    """Return the pictures by file name; none before anything was measured."""
    losses = {
        name: its for name in results.study.spec.contenders if (its := _estimates(results, name))
    }
    pictures = {}
    if losses:
        drawn = contender_losses(losses, _columns(results), results.unit)
        pictures[f"{stem}-losses.png"] = drawn.png()
    claims = [
        (f"{number}", judgement.measured, judgement.claim.bounds, judgement.verdict)
        for number, judgement in enumerate(results.judgements, 1)
        if judgement.measured is not None and judgement.claim.measure != "saved"  # no loss
    ]
    if claims:
        pictures[f"{stem}-claims.png"] = claim_intervals(claims).png()
    return pictures


def render(results: StudyResults, pictures: tuple[str, ...] = ()) -> str:
    """Return the page as Markdown. Pure.

    Args:
        results: of the study.
        pictures: names of its pictures' files.
    """
    spec = results.study.spec
    lines = [f"# Study: {spec.name}", ""]
    lines += [*_paragraph(spec.about), *_changed(results)]
    lines += [*_claims(results), *_losses(results)]
    for picture in pictures:
        caption = "claims" if picture.endswith("-claims.png") else "held-out losses"
        lines += [f"![{caption}, mean and 95% interval over seeds]({picture})", ""]
    lines += [*_not_run(results), *_arms(results), *_how(results)]
    return "\n".join(lines).rstrip() + "\n"


def _paragraph(text: str) -> list[str]:
    return [*_wrapped(text), ""] if text else []


def _item(text: str) -> list[str]:
    return _wrapped(f"- {text}", "  ")


def _wrapped(text: str, indent: str = "") -> list[str]:
    words = " ".join(text.split())
    return wrap(
        words, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _changed(results: StudyResults) -> list[str]:
    """Return a warning where the study file is not the one that runs were begun under."""
    older = [digest for digest in results.digests if digest != results.study.digest]
    if not older:
        return []
    names = ", ".join(f"`{digest[:_DIGEST_LETTERS]}`" for digest in older)
    count = sum(
        result.record is not None and result.record.digest in older for result in results.runs
    )
    return _paragraph(
        f"**The study file has changed since results were made**: {count} of {len(results.runs)} "
        f"runs were begun when its digest was {names}."
    )


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _table(*header: str) -> list[str]:
    return [_row(*header), _row(*("---" for _ in header))]


def _claims(results: StudyResults) -> Iterator[str]:
    if not results.judgements:
        return
    yield from ("## Claims", "")
    yield from _table(
        "#", "claim", "measure", "found", "holds if", "seeds", "in the paper", "verdict"
    )
    for number, judgement in enumerate(results.judgements, 1):
        claim = judgement.claim
        paper = "" if claim.paper is None else f"{claim.paper.number} ({claim.paper.source})"
        measured = judgement.measured
        yield _row(
            str(number),
            claim.says,
            _measure(judgement),
            "-" if measured is None else _value(judgement),
            _bounds(judgement),
            "0" if measured is None else str(measured.count),
            paper or "-",
            _VERDICTS[judgement.verdict],
        )
    yield ""
    yield from _paragraph(
        "Found is the mean over seeds with its 95% interval; a difference is taken seed by seed. A "
        "claim holds where the whole interval is within its bounds, does not where all of it is "
        "outside, and is not decided otherwise, as with a single seed."
    )


def _measure(judgement: Judgement) -> str:
    claim = judgement.claim
    against = f" - {claim.against}" if claim.against is not None else ""
    return f"{claim.measure}: {claim.arm}{against}"


def _value(judgement: Judgement) -> str:
    assert judgement.measured is not None
    return judgement.measured.text(signed=judgement.claim.against is not None)


def _bounds(judgement: Judgement) -> str:
    claim = judgement.claim
    bounds = [("at least", claim.at_least), ("at most", claim.at_most)]
    return ", ".join(f"{words} {value:g}" for words, value in bounds if value is not None)


def _losses(results: StudyResults) -> Iterator[str]:
    yield from (f"## Held-out loss, {results.unit}", "")
    columns = _columns(results)
    yield from _table("model", *columns, "tokens", "saved", "seeds")
    for name in results.study.spec.contenders:
        its = _estimates(results, name)
        models = [r.contenders[name] for r in results.runs if name in r.contenders]
        tokens = f"{models[0].model.tokens:,}" if models else "-"
        saved = f"{models[0].saved:.0%}" if models else "-"
        cells = [its[column].text() if column in its else "-" for column in columns]
        yield _row(name, *cells, tokens, saved, str(len(models)))
    yield ""
    yield from _paragraph(
        "A model is the end of an arm's trunk (ARM) or a release off it (ARM/RELEASE). Tokens are "
        "those of its training, and saved is the share of the tokens of retraining on everything "
        "at every arrival that was not trained."
    )


def _not_run(results: StudyResults) -> Iterator[str]:
    missing = [result for result in results.runs if result.status.state != "done"]
    if not missing:
        return
    yield from ("## Not run", "")
    yield from _table("run", "why")
    for result in missing:
        why = result.status.reason
        yield _row(result.run.name, f"failed: {why}" if result.status.state == "failed" else why)
    yield ""


def _arms(results: StudyResults) -> Iterator[str]:
    spec = results.study.spec
    yield from ("## Arms", "")
    yield from _table("model", "what it is", "overrides of the base run file")
    for name, arm in spec.arms.items():
        yield _row(name, " ".join(arm.about.split()), _code(overrides_of(arm)))
        for release, its in arm.releases.items():
            after = f"off {its.after}" if its.after else "off the trunk's end"
            after += f", the average of {its.average}" if its.average else ""
            texts = [f"{key}={value}" for key, value in its.overrides.items()]
            yield _row(f"{name}/{release}", f"a release {after}", _code(texts))
    yield ""


def _code(texts: list[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts) or "none"


def _how(results: StudyResults) -> Iterator[str]:
    study = results.study
    records = [(result.run.name, result.record) for result in results.runs if result.record]
    hours = sum(result.seconds for result in results.runs) / 3600
    budget = study.spec.budget
    of = "" if budget is None else f", of {budget.total_seconds() / 3600:g} allowed"
    spec_results = study.spec.results
    shared = [f"{name} {record.shared}" for name, record in records if record.shared]
    facts = [
        f"command: `{study.command}`",
        f"digest of the study: `{study.digest[:_DIGEST_LETTERS]}`",
        f"base run file: `{study.spec.run}`",
        f"seeds: {', '.join(map(str, study.spec.seeds))}",
        f"time, of all runs together: {hours:.2f} hours{of}",
        *sorted({f"versions: {_versions(record.versions)}" for _, record in records}),
        *sorted({f"machine: {record.machine}" for _, record in records}),
        *([f"results of all runs: `{spec_results}`"] if spec_results else []),
        *([f"first stages that another arm trained: {', '.join(shared)}"] if shared else []),
    ]
    yield from ("## How it was made", "")
    for fact in facts:
        yield from _item(fact)
    yield ""


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
