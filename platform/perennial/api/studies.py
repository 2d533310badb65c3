"""Studies: read a study file for a run, carry it out, and keep its results and its page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.api.results import StudySummary
from perennial.api.training import check_names_run
from perennial.config import load
from perennial.config.study import StudySpec
from perennial.study.page import write_page
from perennial.study.plan import Study, resolve
from perennial.study.results import keep_results, read_results
from perennial.study.service import default_jobs, preview, run_study

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.study.service import RunEnding


def read_study(
    spec: RunSpec,
    study: StudySpec | str | os.PathLike[str],
    where: Path,
    overrides: Sequence[str],
) -> Study:
    """Return a study with the run file of every arm and seed; see `Run.study`.

    Args:
        spec: the run file of the run whose method was called.
        study: the study, or a study file.
        where: the file's path, where it was read already.
        overrides: of the study file.
    """
    if not isinstance(study, StudySpec):
        where = Path(study)
        study = load(where, StudySpec, overrides)
    check_names_run(str(where), study.run, spec, "study")
    return resolve(where, study, overrides)


def carry_out(
    study: Study, jobs: int | None, output: Path | None, log: Callable[[str], None]
) -> StudySummary:
    """Run what is missing of a study, and write its page whenever a run has ended.

    Args:
        study: the study.
        jobs: most runs side by side; None: as many as there are cores.
        output: a local file for the page; None: as the study file says.
        log: shows a line.
    """

    def write(endings: Mapping[str, RunEnding]) -> StudySummary:
        results = read_results(study, endings)
        keep_results(results)
        failed = {name: end.reason for name, end in endings.items() if end.state == "failed"}
        return StudySummary(results, write_page(results, output), failed)

    endings = run_study(study, jobs or default_jobs(study), log, write)
    return write(endings)


def preview_study(study: Study, jobs: int | None) -> dict[str, Any]:
    """Return what `carry_out` would do, as a JSON-ready document; reads only."""
    side_by_side = jobs or default_jobs(study)
    return preview(study, side_by_side) | {"jobs": side_by_side}
