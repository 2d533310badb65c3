"""A run as tables and figures: what a notebook gets, with pandas and without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas
import pyarrow as pa
import pytest
from matplotlib import pyplot

import perennial
from perennial.api import frames
from perennial.errors import InputError
from tests.support.old_store import unpack_old_store
from tests.support.quickstart_store import unpack_quickstart
from tests.support.search_results import sample_result
from tests.support.tiny_run import tiny_run, write_run

SOURCE = str(Path(perennial.__file__).parents[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> perennial.Run:
    """A run of two stages, the second in training, with a release of the first."""
    return perennial.open(unpack_old_store(tmp_path_factory.mktemp("old")).folder)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> perennial.Run:
    """A run that nothing has landed in."""
    folder = tmp_path_factory.mktemp("empty")
    return perennial.open(write_run(folder, tiny_run(folder)))


def test_status_has_a_row_a_stage(run: perennial.Run) -> None:
    status = run.status()
    assert list(status["stage"]) == ["00-help", "01-code"]
    assert list(status["state"]) == ["released", "training"]
    assert status["replay"][1] > 0
    first = run.read_status().stages[0]
    assert status["adaptation"][0] == first.adaptation == first.losses["help"]
    assert pandas.isna(status["adaptation"][1])
    assert list(run.status(last=1)["stage"]) == ["01-code"]


def test_status_has_a_row_for_a_corpus_without_a_stage(tmp_path: Path) -> None:
    opened = perennial.open(write_run(tmp_path, tiny_run(tmp_path)))
    (tmp_path / "store/inbox/a").mkdir(parents=True)
    (tmp_path / "store/inbox/a/a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "store/inbox/a/_SUCCESS").touch()
    opened.hold("a", "no licence yet")
    (row,) = opened.status().to_dict("records")
    assert (row["corpora"], row["state"], row["reason"]) == ("a", "held", "no licence yet")
    assert pandas.isna(row["stage"])


def test_the_matrix_is_that_of_the_status(run: perennial.Run) -> None:
    matrix = run.matrix()
    assert (matrix.index.name, list(matrix.index)) == ("model", ["00-help", "00-help-12-anneal4"])
    assert list(matrix.columns) == ["help"]
    assert matrix.loc["00-help", "help"] == 5.057240783265143
    losses = run.losses()
    assert list(losses["kind"]) == ["stage", "release"]
    assert list(losses["nats_per_token"]) == list(matrix["help"])
    assert losses["stderr_nats_per_token"][0] > 0


def test_metrics_have_a_row_a_step(run: perennial.Run) -> None:
    first, second = run.metrics("00-help"), run.metrics("01-code")
    assert list(first["step"]) == list(range(1, 13))
    assert list(second["step"]) == list(range(13, 85))
    assert list(second["tokens"]) == [step * 1024 for step in range(13, 85)]
    assert {"loss", "eta", "phase", "seconds_forward", "heldout_new"} <= set(second.columns)
    assert (second["loss"].iloc[0], second["phase"].iloc[0]) == (5.108314514160156, "constant")
    whole = run.metrics()
    assert list(whole["step"]) == list(range(1, 85))
    assert list(run.metrics("00-help-12-anneal4")["step"]) == list(range(13, 17))


@pytest.mark.parametrize("name", ["02-none", "../store", "", "checkpoints/00-help"])
def test_metrics_of_what_is_no_stage_are_refused(run: perennial.Run, name: str) -> None:
    with pytest.raises(InputError, match="name one of: 00-help, 01-code, 00-help-12-anneal4"):
        run.metrics(name)


def test_tokens_are_those_of_the_plan(run: perennial.Run) -> None:
    tokens = run.tokens()
    by_stage = tokens.groupby("stage")["tokens"].sum().to_dict()
    assert by_stage == dict(zip(run.status()["stage"], run.status()["tokens"], strict=True))
    replayed = tokens[tokens["kind"] == "replayed"]
    assert list(zip(replayed["stage"], replayed["corpus"], strict=True)) == [("01-code", "help")]


def test_the_lineage_names_the_parent_of_every_model(run: perennial.Run) -> None:
    lineage = run.lineage().set_index("name")
    assert list(lineage["kind"]) == ["stage", "stage", "release"]
    assert pandas.isna(lineage.loc["00-help", "parent"])
    assert list(lineage["parent"])[1:] == ["00-help", "00-help"]
    assert lineage.loc["00-help-12-anneal4", "folder"] == "releases/00-help-12-anneal4"
    assert list(lineage["last_step"])[:2] == [12, 412]


def test_a_run_without_a_stage_gives_tables_without_a_row(empty: perennial.Run) -> None:
    tables = [empty.status(), empty.matrix(), empty.losses(), empty.metrics(), empty.tokens()]
    tables += [empty.scores(), empty.lineage()]
    assert [len(table) for table in tables] == [0] * 7
    assert list(empty.scores().columns) == list(frames._SCORES)
    assert str(empty.tokens()["tokens"].dtype) == "int64"


def test_scores_have_a_row_a_task_and_say_why_one_is_missing(run: perennial.Run) -> None:
    state = run._reading().ledger.read()
    state.scores = {
        "v1": [
            {"task": "piqa", "metric": "acc", "value": 0.5, "stderr": None, "samples": 10},
            {"task": "arc", "reason": "no network"},
        ]
    }
    scores = frames.scores_frame(state)
    assert list(scores["model"]) == ["v1", "v1"]
    assert (scores["value"][0], scores["reason"][1]) == (0.5, "no network")


def test_without_pandas_the_same_tables_are_arrow_tables(
    run: perennial.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, metrics = run.matrix(), run.metrics("00-help")
    monkeypatch.setitem(sys.modules, "pandas", None)
    table = run.matrix()
    assert isinstance(table, pa.Table)
    assert table.to_pydict() == {"model": list(matrix.index), "help": list(matrix["help"])}
    assert run.metrics("00-help").column_names == list(metrics.columns)
    for name in ("status", "losses", "tokens", "scores", "lineage"):
        assert isinstance(getattr(run, name)(), pa.Table), name


@pytest.mark.parametrize("figure", ["matrix", "losses", "learning-rate", "tokens", "train-loss"])
def test_a_figure_is_the_axes_of_pyplots_current_figure(run: perennial.Run, figure: str) -> None:
    with matplotlib.rc_context({"backend": "agg"}):
        axes = run.plot(figure)
        assert pyplot.gcf() is axes.figure
        assert axes.get_title(loc="left")
        pyplot.close(axes.figure)


def test_a_figure_that_is_not_there_is_refused_with_those_that_are(
    run: perennial.Run, empty: perennial.Run
) -> None:
    with pytest.raises(InputError, match="its figures: matrix, losses") as error:
        run.plot("losse")
    assert error.value.code == "figure-missing"
    with pytest.raises(InputError, match="train and evaluate a stage first"):
        empty.plot()


def test_figures_of_a_search_and_of_a_comparison_are_axes_too(tmp_path: Path) -> None:
    run, other = (
        perennial.open(unpack_quickstart(tmp_path / name)) for name in ("first", "second")
    )
    comparison = run.compare([other])
    with matplotlib.rc_context({"backend": "agg"}):
        front = run.plot_search(sample_result([(3.0, 0.5), (3.1, 0.4)]))
        assert "front" in front.get_legend_handles_labels()[1]
        assert run.plot_comparison(comparison).figure is pyplot.gcf()
        with pytest.raises(InputError, match="its figures: losses") as error:
            run.plot_comparison(comparison, "none")
        assert error.value.code == "figure-missing"
        pyplot.close("all")


def test_reading_a_run_loads_neither_torch_nor_ray_nor_mlflow(run: perennial.Run) -> None:
    code = (
        "import sys, perennial\n"
        f"run = perennial.open({run.where!r})\n"
        "run.on('evaluated', print)\n"
        "for name in ('status', 'matrix', 'metrics', 'tokens', 'scores', 'lineage'):\n"
        "    getattr(run, name)()\n"
        "run.plot('matrix')\n"
        "heavy = {'torch', 'ray', 'mlflow', 'transformers', 'deepspeed', 'lm_eval'}\n"
        "loaded = heavy & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    environment = {"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
