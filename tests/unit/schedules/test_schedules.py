"""Rates at the boundaries, whole curves, what construction refuses, records."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from perennial.errors import InputError
from perennial.schedules import (
    SCHEDULES,
    Anneal,
    ConstantSchedule,
    CosineSchedule,
    InfiniteSchedule,
    Phase,
    Schedule,
    WarmupStableDecay,
    build_curve,
    differences,
    from_dict,
    to_dict,
)

# The paper's 405M model: 132,366 steps, warmup 1%, cooldown 60%, the last 15% annealed.
PAPER_STEPS = 132_366
WARMUP, COOLDOWN, ANNEAL_STEPS = 1_323, 79_419, 19_855
ANNEAL_START = PAPER_STEPS - ANNEAL_STEPS
COSINE_COOLDOWN = InfiniteSchedule(
    eta_max=3e-4,
    eta_const=1.65e-4,
    eta_min=3e-5,
    warmup_steps=WARMUP,
    cooldown_steps=COOLDOWN,
    cooldown_shape="cosine",
)
INVERSE_SQRT_COOLDOWN = replace(COSINE_COOLDOWN, cooldown_shape="inverse-sqrt")
EXPONENTIAL = Anneal(
    start_step=ANNEAL_START,
    steps=ANNEAL_STEPS,
    eta_start=1.65e-4,
    eta_min=3e-5,
    shape="exponential",
)
COSINE = CosineSchedule(eta_max=3e-4, eta_min=3e-5, warmup_steps=WARMUP, steps=PAPER_STEPS)
SECOND_STAGE = replace(COSINE, first_step=PAPER_STEPS)
WSD = WarmupStableDecay(
    eta_max=3e-4,
    eta_min=3e-5,
    warmup_steps=WARMUP,
    steps=PAPER_STEPS,
    decay_steps=26_473,
    decay_shape="1-sqrt",
)
CONSTANT = ConstantSchedule(eta_const=1.65e-4, warmup_steps=WARMUP)
ALL: list[Schedule] = [
    COSINE_COOLDOWN,
    INVERSE_SQRT_COOLDOWN,
    EXPONENTIAL,
    SECOND_STAGE,
    WSD,
    CONSTANT,
]

# The published formulas evaluated with 50 digits, then rounded: "step:rate" in full precision.
GOLDEN: dict[str, tuple[Schedule, str]] = {
    "infinite, cosine cooldown": (
        COSINE_COOLDOWN,
        """
        0:0.0 1:2.2675736961451246e-07 2:4.535147392290249e-07 100:2.2675736961451244e-05
        662:0.00015011337868480723 1000:0.00022675736961451246 1322:0.0002997732426303855
        1323:0.0003 1324:0.0002999999999471889 2000:0.0002999757966168781
        5000:0.00029928723535533437 10000:0.0002960627233553465 20000:0.00028240076912100314
        30000:0.0002610317741162862 41034:0.00023249599483428411 50000:0.00020905479539921066
        60000:0.00018647451749479176 70000:0.00017100275267327946 80000:0.0001650290737683085
        80741:0.00016500000005281103 80742:0.000165 80743:0.000165 132366:0.000165
        1000000000:0.000165
        """,
    ),
    "infinite, inverse-sqrt cooldown": (
        INVERSE_SQRT_COOLDOWN,
        """
        0:0.0 1:2.2675736961451246e-07 2:4.535147392290249e-07 100:2.2675736961451244e-05
        662:0.00015011337868480723 1000:0.00022675736961451246 1322:0.0002997732426303855
        1323:0.0003 1324:0.00029998783312654707 2000:0.0002922540929085025
        5000:0.0002665172265848099 10000:0.00024033449395727673 20000:0.0002122958193285805
        30000:0.00019673415806348543 41034:0.00018562828101024688 50000:0.0001791117864318729
        60000:0.00017345814138603274 70000:0.00016895110366051418 80000:0.00016524906472234688
        80741:0.00016500033352984553 80742:0.000165 80743:0.000165 132366:0.000165
        1000000000:0.000165
        """,
    ),
    "anneal, exponential": (
        EXPONENTIAL,
        """
        112511:0.000165 112512:0.00016498583301302133 112513:0.00016497166724242763
        112514:0.00016495750268811447 112521:0.00016485838485500609 112561:0.000164293138677705
        112611:0.00016358930555497938 113011:0.00015806611062904306 113511:0.00015142360805692654
        114511:0.00013896429743622853 116511:0.00011703682401178538 118511:9.856933347251682e-05
        120511:8.301586772585228e-05 122438:7.035623639735144e-05 124511:5.8884324249795315e-05
        126511:4.9592840905332605e-05 128511:4.1767480571370914e-05 130511:3.5176900565344746e-05
        131511:3.2282504265843885e-05 132311:3.0139423004933826e-05 132364:3.00025760369942e-05
        132365:3e-05
        """,
    ),
    "anneal, 1-sqrt": (
        replace(EXPONENTIAL, shape="1-sqrt"),
        """
        112511:0.000165 112512:0.00016404190238356885 112513:0.00016364504535676573
        112514:0.0001633405262497306 112521:0.0001619702293112992 112561:0.00015822522678382862
        112611:0.00015541902383568845 113011:0.00014357628600579418 113511:0.00013470229311299186
        114511:0.00012215257201158834 116511:0.00010440458622598372 118511:9.078607775042229e-05
        120511:7.930514402317671e-05 122438:6.954058453981609e-05 124511:6.0045664637744816e-05
        126511:5.163636122391426e-05 128511:4.380917245196742e-05 130511:3.645771603476507e-05
        131511:3.293535745851521e-05 132311:3.0183715213261413e-05 132364:3.0003399861487665e-05
        132365:3e-05
        """,
    ),
    "anneal, linear": (
        replace(EXPONENTIAL, shape="linear"),
        """
        112511:0.000165 112512:0.00016499320036264731 112513:0.00016498640072529466
        112514:0.00016497960108794197 112521:0.00016493200362647327 112561:0.00016466001813236628
        112611:0.00016432003626473254 113011:0.00016160018132366273 113511:0.00015820036264732547
        114511:0.00015140072529465094 116511:0.0001378014505893019 118511:0.00012420217588395284
        120511:0.00011060290117860381 122438:9.75e-05 124511:8.340435176790571e-05
        126511:6.980507706255667e-05 128511:5.620580235720762e-05 130511:4.2606527651858565e-05
        131511:3.580689029918404e-05 132311:3.0367180417044425e-05 132364:3.0006799637352675e-05
        132365:3e-05
        """,
    ),
    "anneal, cosine": (
        replace(EXPONENTIAL, shape="cosine"),
        """
        112511:0.000165 112512:0.00016499999915495957 112513:0.00016499999661983832
        112514:0.00016499999239463629 112521:0.0001649999154959747 112561:0.00016499788740994642
        112611:0.0001649915497720238 113011:0.00016478885006924508 113511:0.0001641567212930768
        114511:0.00016164795536423461 116511:0.00015192474599738778 118511:0.00013679607950836502
        120511:0.00011776453264830154 122438:9.75e-05 124511:7.575353673267395e-05
        126511:5.69466131142103e-05 128511:4.216744543567641e-05 130511:3.288389828189915e-05
        131511:3.061536423069438e-05 132311:3.0002464122899654e-05 132364:3.000000084504043e-05
        132365:3e-05
        """,
    ),
    "cosine, second stage": (
        SECOND_STAGE,
        """
        132366:0.0 132367:2.2675736961451246e-07 133028:0.00015011337868480723
        133688:0.0002997732426303855 133689:0.0003 133690:0.00029999999996120494
        134366:0.0002999822195123349 137366:0.0002994758182753977 142366:0.00029708962860882683
        152366:0.00028669171562957285 162366:0.0002693331165113827 172366:0.00024600673171299537
        182366:0.0002180468151110829 199211:0.00016499838177160082 212366:0.00012312514089522092
        222366:9.38483976056315e-05 232366:6.864147920089413e-05 242366:4.894620484377945e-05
        252366:3.588913128065973e-05 262366:3.0217114536168007e-05 264366:3.000519679097205e-05
        264731:3.000000003879501e-05 264732:3e-05
        """,
    ),
    "wsd": (
        WSD,
        """
        0:0.0 1:2.2675736961451246e-07 662:0.00015011337868480723 1322:0.0002997732426303855
        1323:0.0003 1324:0.0003 50000:0.0003 105893:0.0003 105894:0.00029834052624973055
        105895:0.00029765314971596683 105903:0.00029475228323188723 105993:0.000283405262497306
        106893:0.00024752283231887237 108893:0.00020910687933897555 111893:0.00017145771603476506
        114893:0.00014256849695661722 119129:0.00010908116907963217 122893:8.363109471746153e-05
        125893:6.531497159668739e-05 128893:4.8328344980680845e-05 131893:3.241789797584978e-05
        132364:3.0005099776176946e-05 132365:3e-05 132366:3e-05
        """,
    ),
    "constant": (
        CONSTANT,
        """
        0:0.0 1:1.2471655328798187e-07 2:2.4943310657596374e-07 3:3.741496598639456e-07
        10:1.2471655328798186e-06 100:1.2471655328798186e-05 200:2.4943310657596373e-05
        331:4.1281179138321994e-05 400:4.9886621315192745e-05 500:6.235827664399093e-05
        662:8.256235827664399e-05 800:9.977324263038549e-05 900:0.00011224489795918367
        1000:0.00012471655328798187 1200:0.00014965986394557823 1300:0.0001621315192743764
        1322:0.00016487528344671202 1322:0.00016487528344671202 1323:0.000165 1324:0.000165
        1000000:0.000165
        """,
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_rates_follow_the_published_formula(name: str) -> None:
    schedule, curve = GOLDEN[name]
    expected = {int(s): float(r) for s, r in (pair.split(":") for pair in curve.split())}
    assert len(expected) >= 20
    assert {s: schedule.eta(s) for s in expected} == pytest.approx(expected, rel=1e-14, abs=0)


@pytest.mark.parametrize(
    ("schedule", "step", "rate"),
    [
        (COSINE_COOLDOWN, 0, 0.0),
        (COSINE_COOLDOWN, WARMUP, 3e-4),
        (COSINE_COOLDOWN, WARMUP + COOLDOWN, 1.65e-4),
        (COSINE_COOLDOWN, ANNEAL_START, 1.65e-4),
        (COSINE_COOLDOWN, 10**12, 1.65e-4),
        (INVERSE_SQRT_COOLDOWN, WARMUP, 3e-4),
        (INVERSE_SQRT_COOLDOWN, WARMUP + COOLDOWN, 1.65e-4),
        (replace(COSINE_COOLDOWN, warmup_steps=0), 0, 3e-4),
        (replace(COSINE_COOLDOWN, warmup_steps=0), COOLDOWN, 1.65e-4),
        (replace(COSINE_COOLDOWN, eta_const=3e-4, cooldown_steps=0), WARMUP, 3e-4),
        (EXPONENTIAL, ANNEAL_START, 1.65e-4),
        (EXPONENTIAL, PAPER_STEPS - 1, 3e-5),
        (EXPONENTIAL, PAPER_STEPS, 3e-5),
        (replace(EXPONENTIAL, shape="linear", eta_min=0.0), PAPER_STEPS - 1, 0.0),
        (replace(EXPONENTIAL, steps=2), ANNEAL_START, 1.65e-4),
        (replace(EXPONENTIAL, steps=2), ANNEAL_START + 1, 3e-5),
        (COSINE, 0, 0.0),
        (COSINE, WARMUP, 3e-4),
        (COSINE, PAPER_STEPS, 3e-5),
        (replace(COSINE, warmup_steps=0), 0, 3e-4),
        (SECOND_STAGE, PAPER_STEPS, 0.0),
        (SECOND_STAGE, PAPER_STEPS + WARMUP, 3e-4),
        (SECOND_STAGE, 2 * PAPER_STEPS, 3e-5),
        (WSD, WARMUP, 3e-4),
        (WSD, PAPER_STEPS - 26_473, 3e-4),
        (WSD, PAPER_STEPS - 1, 3e-5),
        (CONSTANT, WARMUP, 1.65e-4),
        (replace(CONSTANT, warmup_steps=0), 0, 1.65e-4),
    ],
)
def test_rate_at_a_boundary_is_exact(schedule: Schedule, step: int, rate: float) -> None:
    assert schedule.eta(step) == rate


def test_cosine_decays_to_eta_min_without_a_flat_tail() -> None:
    tail = [COSINE.eta(step) for step in range(PAPER_STEPS - 2_000, PAPER_STEPS + 1)]
    assert all(earlier > later for earlier, later in pairwise(tail))
    assert tail[-2] == pytest.approx(3e-5, rel=1e-8)
    assert tail[-1] == 3e-5
    assert COSINE.eta(PAPER_STEPS + 1_000) == 3e-5


@pytest.mark.parametrize(
    ("schedule", "ends", "last"),
    [
        (COSINE_COOLDOWN, {"warmup": WARMUP, "cooldown": WARMUP + COOLDOWN}, "constant"),
        (replace(COSINE_COOLDOWN, warmup_steps=0), {"cooldown": COOLDOWN}, "constant"),
        (EXPONENTIAL, {"anneal": PAPER_STEPS - 1}, "anneal"),
        (SECOND_STAGE, {"warmup": PAPER_STEPS + WARMUP, "anneal": 2 * PAPER_STEPS}, "anneal"),
        (replace(COSINE, warmup_steps=0), {"anneal": PAPER_STEPS}, "anneal"),
        (
            WSD,
            {"warmup": WARMUP, "constant": PAPER_STEPS - 26_473, "anneal": PAPER_STEPS - 1},
            "anneal",
        ),
        (
            replace(WSD, decay_steps=PAPER_STEPS - WARMUP),
            {"warmup": WARMUP, "anneal": PAPER_STEPS - 1},
            "anneal",
        ),
        (CONSTANT, {"warmup": WARMUP}, "constant"),
        (replace(CONSTANT, warmup_steps=0), {}, "constant"),
    ],
)
def test_a_phase_includes_the_step_at_which_it_ends(
    schedule: Schedule, ends: dict[Phase, int], last: Phase
) -> None:
    assert schedule.phase_ends() == ends
    following = [*ends, last][1:]
    for (phase, end), after in zip(ends.items(), following, strict=True):
        assert schedule.phase(end) == phase
        assert schedule.phase(end + 1) == after
    assert schedule.phase(10**9) == last


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.kind)
def test_a_step_before_the_schedule_begins_is_refused(schedule: Schedule) -> None:
    first = getattr(schedule, "start_step", getattr(schedule, "first_step", 0))
    for ask in (schedule.eta, schedule.phase):
        with pytest.raises(ValueError, match=f"step is {first - 1}; .* begins at step {first}"):
            ask(first - 1)


@pytest.mark.parametrize(
    ("schedule", "change", "message"),
    [
        (COSINE_COOLDOWN, {"eta_min": 0.0}, "eta_min is 0.0; it must be a finite number above 0"),
        (COSINE_COOLDOWN, {"eta_min": 2e-4}, "eta_min is 0.0002, above eta_const = 0.000165"),
        (COSINE_COOLDOWN, {"eta_const": 4e-4}, "eta_const is 0.0004, above eta_max = 0.0003"),
        (COSINE_COOLDOWN, {"eta_max": float("inf")}, "eta_max is inf; it must be a finite number"),
        (COSINE_COOLDOWN, {"eta_max": float("nan")}, "eta_max is nan; it must be a finite number"),
        (COSINE_COOLDOWN, {"eta_max": 10**400}, "eta_max is 1000"),
        (COSINE_COOLDOWN, {"eta_max": "3e-4"}, "eta_max is '3e-4'; it must be a finite number"),
        (COSINE_COOLDOWN, {"eta_max": True}, "eta_max is True; it must be a finite number"),
        (
            COSINE_COOLDOWN,
            {"warmup_steps": -1},
            "warmup_steps is -1; .* optimizer steps, 0 or more",
        ),
        (COSINE_COOLDOWN, {"warmup_steps": 0.01}, "warmup_steps is 0.01; .* whole number"),
        (COSINE_COOLDOWN, {"cooldown_steps": True}, "cooldown_steps is True; .* whole number"),
        (COSINE_COOLDOWN, {"cooldown_steps": 0}, "cooldown_steps is 0, so the rate would jump"),
        (COSINE_COOLDOWN, {"cooldown_shape": "linear"}, "one of cosine, inverse-sqrt"),
        (COSINE_COOLDOWN, {"alpha": 0}, "alpha is 0; it must be a finite number above 0"),
        (EXPONENTIAL, {"start_step": -1}, "start_step is -1"),
        (EXPONENTIAL, {"steps": 1}, "steps is 1; .* optimizer steps, 2 or more"),
        (EXPONENTIAL, {"eta_start": 0.0}, "eta_start is 0.0"),
        (EXPONENTIAL, {"eta_min": 0.0}, "eta_min is 0.0; it must be a finite number above 0"),
        (EXPONENTIAL, {"shape": "linear", "eta_min": -1.0}, "eta_min is -1.0; .* of 0 or more"),
        (EXPONENTIAL, {"eta_min": 2e-4}, "eta_min is 0.0002, above eta_start = 0.000165"),
        (EXPONENTIAL, {"shape": "sqrt"}, "shape is 'sqrt'; .* exponential, 1-sqrt, linear, cosine"),
        (COSINE, {"warmup_steps": PAPER_STEPS}, "warmup_steps is 132366; .* below steps = 132366"),
        (COSINE, {"steps": 0}, "steps is 0"),
        (COSINE, {"first_step": -1}, "first_step is -1"),
        (COSINE, {"eta_min": 1.0}, "eta_min is 1.0, above eta_max = 0.0003"),
        (WSD, {"decay_steps": PAPER_STEPS}, "steps is 132366; .* decay_steps = 133689 or more"),
        (WSD, {"decay_steps": 1}, "decay_steps is 1; .* 2 or more"),
        (WSD, {"decay_shape": "exponential", "eta_min": 0}, "eta_min is 0; .* above 0"),
        (CONSTANT, {"eta_const": -1e-4}, "eta_const is -0.0001"),
        (CONSTANT, {"warmup_steps": None}, "warmup_steps is None"),
    ],
)
def test_construction_names_the_field_and_what_would_be_right(
    schedule: Schedule, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(schedule, **change)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.kind)
def test_a_record_brings_the_same_schedule_back(schedule: Schedule) -> None:
    record = to_dict(schedule)
    assert from_dict(json.loads(json.dumps(record))) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert record["kind"] == schedule.kind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": None}, "kind is None"),
        ({"kind": ["cosine"]}, "kind is "),
        ({"kind": "anneal"}, "eta_start is missing; a record of kind 'anneal' needs it"),
        ({"lr": 1.0}, "lr is not a field of kind 'infinite'; remove it"),
        ({"eta_min": 0}, "eta_min is 0; it must be a finite number above 0"),
    ],
)
def test_a_wrong_record_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict({**to_dict(COSINE_COOLDOWN), **change})


def test_a_record_without_alpha_is_refused_rather_than_given_the_default() -> None:
    record = to_dict(COSINE_COOLDOWN)
    del record["alpha"]
    with pytest.raises(ValueError, match="alpha is missing"):
        from_dict(record)


def test_differences_name_each_field_with_both_values() -> None:
    assert differences(COSINE_COOLDOWN, COSINE_COOLDOWN) == []
    changed = replace(COSINE_COOLDOWN, eta_const=2e-4, cooldown_steps=100)
    assert differences(COSINE_COOLDOWN, changed) == [
        "eta_const: 0.000165 -> 0.0002",
        "cooldown_steps: 79419 -> 100",
    ]


def test_differences_between_kinds_include_the_fields_only_one_has() -> None:
    assert differences(CONSTANT, replace(COSINE, warmup_steps=7)) == [
        "kind: 'constant' -> 'cosine'",
        "eta_const: 0.000165 -> absent",
        "warmup_steps: 1323 -> 7",
        "eta_max: absent -> 0.0003",
        "eta_min: absent -> 3e-05",
        "steps: absent -> 132366",
        "first_step: absent -> 0",
    ]


def test_importing_schedules_loads_pydantic_and_the_standard_library_alone() -> None:
    code = (
        "import sys; before = set(sys.modules); import perennial.schedules; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    source_root = Path(__file__).parents[3] / "platform"
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(source_root)!r}); {code}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    pydantic = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions"}
    outside = {name for name in loaded if not name.startswith("_sysconfigdata")}
    outside -= sys.stdlib_module_names | pydantic | {"typing_inspection"}
    assert outside == {"perennial"}


def test_the_table_in_the_documentation_is_what_its_command_prints() -> None:
    page = (Path(__file__).parents[3] / "docs" / "explanation/schedules.md").read_text(
        encoding="utf-8"
    )
    command = page.split("```python\n")[1].split("```")[0]
    table = page.split("```text\n")[1].split("```")[0]
    printed = subprocess.run(
        [sys.executable, "-c", command],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[3] / "platform")},
    ).stdout
    assert printed == table


WARMED = [COSINE_COOLDOWN, SECOND_STAGE, WSD, CONSTANT]


@pytest.mark.parametrize("schedule", WARMED, ids=lambda s: s.kind)
def test_a_warmup_may_begin_at_the_last_rate_of_a_model_that_was_annealed(schedule: Any) -> None:
    first = getattr(schedule, "first_step", 0)
    peak = schedule.eta(first + WARMUP)
    warmer = replace(schedule, warmup_start=3e-5)
    assert warmer.eta(first) == 3e-5
    assert warmer.eta(first + WARMUP // 3) == pytest.approx(3e-5 + (peak - 3e-5) / 3)
    assert warmer.eta(first + WARMUP) == peak
    assert warmer.eta(first + WARMUP + 9) == schedule.eta(first + WARMUP + 9)
    assert from_dict(json.loads(json.dumps(to_dict(warmer)))) == warmer
    with pytest.raises(ValueError, match="warmup_start"):
        replace(schedule, warmup_start=1.0)
    with pytest.raises(ValueError, match="the warmup has no steps"):
        replace(warmer, warmup_steps=0)


@pytest.mark.parametrize("schedule", WARMED, ids=lambda s: s.kind)
def test_a_curve_that_warms_up_from_0_is_recorded_as_before(schedule: Schedule) -> None:
    assert "warmup_start" not in to_dict(schedule)


@pytest.mark.parametrize("kind", ["infinite", "cosine", "wsd", "constant"])
def test_the_run_file_names_where_a_warmup_begins(kind: str) -> None:
    rates: dict[str, Any] = {"eta_const": 1e-3} if kind == "constant" else {"eta_max": 1e-3}
    keys = {"kind": kind, "eta_min": 1e-4, "warmup": "10 steps", "warmup_start": 1e-4, **rates}
    curve = build_curve(SCHEDULES[kind].model_validate(keys), 0, 100, 1000)
    assert [curve.eta(0), curve.eta(5), curve.eta(10)] == pytest.approx([1e-4, 5.5e-4, 1e-3])
    with pytest.raises(ValueError, match=r"warmup_start 0\.01 is above the rate 0\.001"):
        SCHEDULES[kind].model_validate(keys | {"warmup_start": 1e-2})
    none = SCHEDULES[kind].model_validate(keys | {"warmup": "1%"})
    with pytest.raises(InputError, match=r"no steps; give schedule\.warmup in steps"):
        build_curve(none, 0, 40, 1000)


@pytest.mark.parametrize("at", [0, 3, 10, 11, 40, 70, 71, 500])
@pytest.mark.parametrize(
    "trunk",
    [
        InfiniteSchedule(1e-3, 5e-4, 1e-4, 10, 60, "cosine", warmup_start=1e-5),
        ConstantSchedule(1e-3, 40),
    ],
    ids=["infinite", "constant"],
)
def test_a_continued_curve_is_the_trunks_from_the_step_where_it_stands(
    trunk: Schedule, at: int
) -> None:
    keys = {"eta_const": 9e-4, "eta_min": 1e-4}
    keys |= {"eta_max": 9e-4} if trunk.kind == "infinite" else {}
    section = SCHEDULES[trunk.kind].model_validate({"kind": trunk.kind, **keys})
    again = section.continued(trunk, at)
    curve = type(again).model_validate(again.model_dump(mode="json")).build(0, 1000, 64)
    for step in range(120):
        assert (curve.eta(step), curve.phase(step)) == (
            trunk.eta(at + step),
            trunk.phase(at + step),
        )
    assert from_dict(to_dict(curve)) == curve
    assert set(curve.phase_ends().values()) == {
        end - at for end in trunk.phase_ends().values() if end >= at
    }
    assert again.continued(curve, 5).build(0, 1000, 64).eta(0) == trunk.eta(at + 5)


def test_a_continued_schedule_has_no_shares_of_a_stage_of_another_run() -> None:
    keys = {"kind": "infinite", "eta_max": 1e-3, "eta_min": 1e-4, "steps_before": 30}
    with pytest.raises(ValueError, match="give warmup in steps"):
        SCHEDULES["infinite"].model_validate(keys)
