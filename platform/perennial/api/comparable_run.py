"""A run beside others: comparisons, studies, and simulated fleets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.api.operated_run import OperatedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from perennial.api.results import StudySummary
    from perennial.api.stored_run import StoredRun
    from perennial.config.study import StudySpec
    from perennial.planning.fleet_forecast import FleetForecast
    from perennial.planning.spot_fleet import Fleet
    from perennial.report.compare import Comparison
    from perennial.search.results import SearchResult

PathLike = str | os.PathLike[str]


class ComparableRun(OperatedRun):
    """A run whose results are set beside those of others, real or simulated."""

    def compare(
        self,
        others: Sequence[StoredRun],
        output: PathLike | None = None,
        *,
        csv: PathLike | None = None,
        latex: PathLike | None = None,
    ) -> Comparison:
        """Return this run beside others at equal tokens: losses, gaps, compute saved.

        Runs that differ in their seed alone are taken together: means and intervals over seeds.

        Args:
            others: runs to compare with.
            output: a local file for the same as one HTML page; None: none.
            csv: a local file for losses, gaps and transfer as CSV; None: none.
            latex: a local file for the same as tables of booktabs; None: none.

        Raises:
            InputError: a run has no evaluated stage, or two runs have one store.
        """
        from perennial.api.pictures import write_comparison
        from perennial.report.compare import compare

        comparison = compare([run._reading() for run in (self, *others)])
        files = {"page": output, "csv": csv, "latex": latex}
        write_comparison(comparison, {kind: Path(to) for kind, to in files.items() if to})
        return comparison

    def study(
        self,
        study: StudySpec | PathLike,
        where: PathLike = "study file",
        output: PathLike | None = None,
        *,
        jobs: int | None = None,
        overrides: Sequence[str] = (),
        log: Callable[[str], None] = lambda line: None,
    ) -> StudySummary:
        """Run what is missing of a study of this run, and write its page. Safe to repeat and kill.

        Args:
            study: a study file that names this run, or what `perennial.config.load` read from it.
            where: the file that was read, for errors and for paths in arms.
            output: a local file for the page, pictures beside it; None: as the study file says.
            jobs: most runs side by side; None: as many as there are cores.
            overrides: `section.key=value` of a study file; those that were applied, of one that was
                read.
            log: shows a line of progress.

        Returns:
            Results of arms and claims, where the page is, and the runs that failed.

        Raises:
            InputError: the study is wrong, or is one of another run; or nothing has landed.
            Terminated: on SIGTERM, after the runs stored a checkpoint.
        """
        from perennial.api.studies import carry_out, read_study

        resolved = read_study(self.spec, study, Path(where), overrides)
        return carry_out(resolved, jobs, None if output is None else Path(output), log)

    def plan_study(
        self,
        study: StudySpec | PathLike,
        where: PathLike = "study file",
        *,
        jobs: int | None = None,
        overrides: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return the runs that `study` would carry out, in order; arguments and errors are its."""
        from perennial.api.studies import preview_study, read_study

        return preview_study(read_study(self.spec, study, Path(where), overrides), jobs)

    def plot_search(self, result: SearchResult) -> Axes:
        """Draw what the trials of a search learned against what they lost; see `plot`."""
        from perennial.api.pictures import plot_search

        return plot_search(result)

    def plot_comparison(self, comparison: Comparison, figure: str = "losses") -> Axes:
        """Draw a figure of a comparison's page, and return its matplotlib axes; see `plot`.

        Args:
            comparison: as `compare` returns it.
            figure: heading of the page in lower case, with dashes.

        Raises:
            InputError: there is no such figure of these runs.
        """
        from perennial.api.pictures import plot_comparison

        return plot_comparison(self.where, comparison, figure)

    def simulate(
        self, costs: PathLike, fleet: Fleet, *, hours: float = 24.0, seeds: int = 20
    ) -> FleetForecast:
        """Return the goodput on preemptible machines, and the settings that give most of it.

        Args:
            costs: a costs file, such as benchmarks/costs/quickstart.yaml.
            fleet: the machines.
            hours: wall clock of one simulated run.
            seeds: number of simulated runs.
        """
        from perennial.config import load
        from perennial.planning.fleet_forecast import forecast_fleet
        from perennial.planning.spot_fleet import CostsSpec

        spec, measured = self.spec, load(Path(costs), CostsSpec)
        return forecast_fleet(spec, measured, fleet, hours * 3600, range(seeds))
