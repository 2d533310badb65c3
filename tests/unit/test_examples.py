"""The examples that need no training: they run as they are."""

from __future__ import annotations

import importlib
import io
import json
import re
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas
import pytest
from PIL import Image

import perennial
from perennial.config import load_run
from perennial.sources.places import find_files
from tests.support.old_store import unpack_old_store
from tests.support.quickstart_store import unpack_quickstart

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], ModuleType]:
    """Return a function that imports an example by its path, for the time of the test."""

    def import_example(path: Path) -> ModuleType:
        monkeypatch.syspath_prepend(path.parent)
        return importlib.import_module(path.stem)

    return import_example


def test_inspect_store_prints_the_matrix(
    load: Callable[[Path], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = unpack_old_store(tmp_path)
    assert load(EXAMPLES / "inspect_store.py").main(str(old.folder)) == 0
    assert "stage,00-help,help" in capsys.readouterr().out


def test_the_data_frame_of_the_readme_is_the_matrix_above_it(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"`(perennial\.open\(.*?\)\.matrix\(\))`", readme)
    program = shown.replace("run.yaml", str(unpack_quickstart(tmp_path)))
    frame = eval(program, {"perennial": perennial})
    assert isinstance(frame, pandas.DataFrame)
    rows = [f"{name}  {'   '.join(f'{n:.3f}' for n in row)}" for name, *row in frame.itertuples()]
    printed = [" ".join(line.split()) for line in readme.splitlines()]
    for row in rows:
        name, *numbers = row.split()
        # A screen of 80 columns ends a long name with an ellipsis.
        (line,) = [line for line in printed if " ".join(numbers) in line]
        assert any(
            name == word or word in (name[:n] + "…" for n in range(8, 40)) for word in line.split()
        ), row


def test_continue_has_the_base_and_its_own_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spec = load_run(EXAMPLES / "continue.yaml")
    base = load_run(ROOT / "pipelines/quickstart.yaml")
    assert (spec.store, spec.name, spec.model) == (base.store, base.name, base.model)
    assert spec.stages.corpora["news"].replay == 0.1


def test_the_plugin_schedule_is_named_by_its_entry_point(
    load: Callable[[Path], ModuleType],
) -> None:
    project = tomllib.loads((EXAMPLES / "plugin_schedule/pyproject.toml").read_text())["project"]
    module_name, _, class_name = project["entry-points"]["perennial.schedules"][
        "inverse-sqrt"
    ].partition(":")
    module = load(EXAMPLES / "plugin_schedule" / f"{module_name}.py")
    section = getattr(module, class_name)(kind="inverse-sqrt", eta_max=3e-3, eta_min=3e-4, rise=100)
    curve = section.build(first_step=0, steps=500, tokens_per_step=1)
    assert [curve.eta(step) for step in (0, 50, 100, 400, 10**6)] == [
        0.0,
        1.5e-3,
        3e-3,
        1.5e-3,
        3e-4,
    ]
    assert (curve.phase(100), curve.phase(101)) == ("warmup", "cooldown")


def test_the_messy_crawl_has_what_its_guide_names(
    load: Callable[[Path], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert [step.kind for step in load_run(EXAMPLES / "crawl.yaml").corpora.steps] == [
        "language",
        "gopher-quality",
        "gopher-repetition",
        "personal-data",
    ]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(2400)))
    load(EXAMPLES / "messy_crawl.py").main(texts, tmp_path / "crawl")
    placed = find_files([str(tmp_path / "crawl/pages"), str(tmp_path / "crawl/dump")])
    assert [file.name.rpartition("/")[2] for file in placed.files] == [
        "a.warc.wet.gz",
        "c4-train.00000.json.gz",
        "c4-train.00001.json.gz",
    ]
    assert len(placed.left_out) == 3


def test_digits_are_images_of_levels_and_are_drawn_beside_what_a_model_wrote(
    load: Callable[[Path], ModuleType], tmp_path: Path
) -> None:
    digits = load(EXAMPLES / "digits.py")
    digits.main(tmp_path / "digits.jsonl")
    lines = (tmp_path / "digits.jsonl").read_text().splitlines()
    images = [json.loads(line)["input_ids"] for line in lines]
    assert len(images) == 1797
    assert {len(image) for image in images} == {64}
    assert {level for image in images for level in image} == set(range(17))
    made = digits.draw([16] * 33 + [0, 16], 33, [0] * 63 + [16], scale=1)
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.size == (20, 8)
        pixels = [picture.getpixel(at) for at in ((0, 0), (7, 7), (12, 0), (13, 4), (14, 4))]
        missing = picture.getpixel((19, 7))
    # Paper and ink of the image itself; given ink; written paper and ink; what is not there.
    white, dark, blue = (255, 255, 255), (40, 40, 40), (0, 114, 178)
    assert pixels == [white, dark, dark, white, blue]
    assert missing == (213, 94, 0)


def test_a_chorale_is_four_voices_by_eighths(
    load: Callable[[Path], ModuleType], tmp_path: Path
) -> None:
    chorales = load(EXAMPLES / "chorales.py")
    quarter = (
        "<note><pitch><step>C</step><octave>{}</octave></pitch><duration>2</duration>{}</note>"
    )
    rest = "<note><rest/><duration>1</duration></note>"
    tied = quarter.format(2, '<tie type="stop"/>')
    voice = "<part><measure><attributes><divisions>2</divisions></attributes>{}</measure></part>"
    voices = [quarter.format(5, ""), rest + rest, quarter.format(3, ""), tied]
    score = "".join(["<score>", *map(voice.format, voices), "</score>"]).encode()
    high, low = 12 * 6 - 36 + 2, 12 * 4 - 36 + 2
    assert chorales.encode(score) == [high, 0, low, 1, 1, 0, 1, 1]
    assert chorales.encode(score.replace(b"<octave>5", b"<octave>9")) == []
    assert chorales.encode(b"<score><part></part></score>") == []
    made = chorales.draw([high, 0, low, 1, 1, 0, 1], 4, [high, 0, low, 1, 1, 0, 1, 1])
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.size == (8, 2 * 96 + 6)
        colours = {picture.getpixel((x, y)) for x in range(8) for y in range(2 * 96 + 6)}
    assert {(213, 94, 0), (0, 158, 115), (255, 255, 255), (235, 235, 235)} <= colours
    scores = {f"music21/corpus/bach/bwv{n}.mxl": _packed(score) for n in range(3)}
    with zipfile.ZipFile(tmp_path / "music21.whl", "w") as wheel:
        for name, data in scores.items():
            wheel.writestr(name, data)
    chorales.main(tmp_path / "music21.whl", tmp_path / "chorales.jsonl")
    lines = (tmp_path / "chorales.jsonl").read_text().splitlines()
    assert lines == [json.dumps({"input_ids": [high, 0, low, 1, 1, 0, 1, 1]})] * 3


def _packed(score: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
        archive.writestr("score.xml", score)
    return packed.getvalue()


def test_the_sequences_have_the_entries_that_their_files_need(
    load: Callable[[Path], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    spec = load_run(EXAMPLES / "sequences.yaml")
    own = (spec.stages.corpora[name].extend_tokenizer for name in ("digits", "chorales"))
    assert [brought.ids for brought in own if brought is not None] == [
        load(EXAMPLES / "digits.py").LEVELS,
        load(EXAMPLES / "chorales.py").IDS,
    ]
    assert {its.function for its in spec.evaluation.render.values()} == {
        "digits:draw",
        "chorales:draw",
    }
