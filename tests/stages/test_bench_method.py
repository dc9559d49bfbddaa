from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_demo.errors import Error, InputError
from edge_demo.runtime import TensorSpec
from stages.bench import rows, stage
from stages.bench.client import Worker, WorkerError
from stages.bench.inputs import fixed_shape, random_samples
from stages.bench.method import Lab, Plan, Record, measure
from stages.bench.model_file import ModelFile
from stages.bench.subject import laps
from stages.bench.target import Target
from stages.bench.variants import Variant, plan_variants
from stages.spec import BenchConfig, ignore

FAKE = (sys.executable, str(Path(__file__).with_name("bench_fake_worker.py")))
PLAN = Plan(launches=2, rounds=6, slice_s=0.01, rewarm_s=0.0, min_runs=1, warm_cap_s=0.1, slice_timeout_s=2.0)


def _variant(name: str, *, precision: str = "fp32", runtime: str = "onnxruntime") -> Variant:
    model = ModelFile(Path(f"{name}.onnx"), f"{name}.onnx", "0" * 64, 1, precision)
    return Variant(f"{name}-{precision}", runtime, precision, "f32", 1, model)


def _lab(tmp_path: Path, plan: Plan = PLAN) -> Lab:
    return Lab(tmp_path, 0, plan, ignore, FAKE)


def test_every_arm_is_visited_in_every_round_in_changing_order(tmp_path: Path) -> None:
    plan = replace(PLAN, launches=2, rounds=60)
    records, duplicate = measure([_variant("ok-10"), _variant("ok-20")], _lab(tmp_path, plan))
    assert duplicate is not None
    arms = [*records.values(), duplicate]
    for arm in arms:
        assert [(entry["launch"], entry["round"]) for entry in arm.rounds] == [
            (k, r) for k in (0, 1) for r in range(60)
        ]
    orders = Counter(
        tuple(entry["pos"] for entry in entries) for entries in zip(*(a.rounds for a in arms), strict=True)
    )
    assert len(orders) == 6  # all permutations of three arms
    assert max(orders.values()) < 2.5 * 120 / 6


def test_known_costs_give_known_ratios(tmp_path: Path) -> None:
    records, duplicate = measure([_variant("ok-30"), _variant("ok-20"), _variant("ok-60")], _lab(tmp_path))
    base, fast, slow = records.values()
    same = rows.duplicate_ratios(duplicate, base, PLAN.launches, 0)
    assert same == dict.fromkeys(("wall", "p50", "cpu"), (1.0, 1.0, 1.0))
    host = rows.judge_host(list(records.values()), same, 0)
    assert (host.interference, host.status) == (0.0, "clean")
    made = [rows.row(record, base, PLAN.launches, host) for record in records.values()]
    assert [row.ratio and row.ratio.verdict for row in made] == ["same", "faster", "slower"]
    assert made[1].ratio
    assert made[1].ratio.headline == pytest.approx((1.5, 1.5, 1.5))
    assert made[2].fps
    assert made[2].fps.median == pytest.approx(1e6 / 60)
    assert made[2].latency_us
    assert (made[2].latency_us.n, made[2].latency_us.p99, made[2].latency_us.max) == (2400, 60.0, 60.0)
    assert made[0].memory
    assert made[0].memory.vmhwm == 3_000_000
    assert fast.executed == {"Conv:float": 2, "Relu:float": 1}
    assert slow.output_names == ["y"]


def test_a_busy_host_gives_no_absolute_fps_but_an_estimate_and_ratios_by_cpu_time(tmp_path: Path) -> None:
    records, duplicate = measure([_variant("busy-30"), _variant("busy-20")], _lab(tmp_path))
    base, fast = records.values()
    host = rows.judge_host([base, fast], rows.duplicate_ratios(duplicate, base, 2, 0), 0)
    assert host.status == "contended"
    row = rows.row(fast, base, 2, host)
    assert row.fps
    assert row.fps.median is None
    assert "0 of 12 slices" in row.fps.reason
    assert row.fps.uncontended_est == pytest.approx(1e6 / 20)
    assert row.ratio
    assert row.ratio.metric == "cpu"
    assert row.ratio.verdict == "faster"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash", "ended with exit code 7: the last words"),
        ("killed", "ended by SIGKILL (out of memory?)"),
        ("hang", "no answer to 'slice' within 2 s; killed"),
        ("garbage", "garbled answer to 'slice': 'Segmentation faul'; killed"),
        ("error", "RuntimeError: bad kernel"),
        ("refused", "m.onnx: not a model"),
    ],
)
def test_a_failing_worker_ends_its_row_and_no_other(tmp_path: Path, fault: str, reason: str) -> None:
    records, duplicate = measure([_variant("ok-30"), _variant(f"{fault}-20"), _variant("ok-60")], _lab(tmp_path))
    base, bad, good = records.values()
    assert base.failure is None
    assert len(good.rounds) == 12
    same = rows.duplicate_ratios(duplicate, base, 2, 0)
    row = rows.row(bad, base, 2, rows.judge_host([base, good], same, 0))
    assert row.status == "failed"
    assert reason in row.reason
    assert (row.rounds, row.ratio, row.fps, row.latency_us) == ((), None, None, None)


def test_when_the_baseline_fails_the_next_row_takes_over_and_nothing_is_called_different_lightly(
    tmp_path: Path,
) -> None:
    records, duplicate = measure([_variant("crash-30"), _variant("ok-20"), _variant("ok-10")], _lab(tmp_path))
    base = stage._first_working(list(records.values()))
    assert base.variant.id == "ok-20-fp32"
    assert rows.duplicate_ratios(duplicate, base, 2, 0) is None
    host = rows.judge_host([base], None, 0)
    assert rows.same_model(None, base.variant, host).noise_floor == 0.05


@pytest.mark.parametrize(("fault", "kind"), [("refused", InputError), ("crash", Error)])
def test_when_every_row_fails_the_error_says_why(tmp_path: Path, fault: str, kind: type[Error]) -> None:
    records, _ = measure([_variant(f"{fault}-20")], _lab(tmp_path))
    with pytest.raises(kind, match="nothing could be measured") as caught:
        stage._first_working(list(records.values()))
    assert type(caught.value) is kind
    assert caught.value.exit_code == (2 if fault == "refused" else 1)


def test_not_knowing_the_operators_is_no_failure(tmp_path: Path) -> None:
    records, _ = measure([_variant("nocensus-20")], _lab(tmp_path, replace(PLAN, launches=1, rounds=1)))
    (record,) = records.values()
    assert record.failure is None
    assert record.executed == {}


def test_leaving_a_worker_ends_its_process(tmp_path: Path) -> None:
    with Worker(1, tmp_path / "log", (sys.executable, "-c", "import time; time.sleep(60)")) as worker:
        with pytest.raises(WorkerError, match="no answer to 'load' within 0 s"):
            worker.ask(0.1, do="load")
        process = worker._process
    assert process.returncode is not None


def _record(name: str, cost: np.ndarray, positions: np.ndarray) -> Record:
    launches, rounds_each = cost.shape
    entries = [
        {"launch": k, "round": r, "pos": int(positions[k, r]), "n": 100, "wall_s": cost[k, r], "cpu_s": cost[k, r],
         "run_delay_s": 0.0, "nivcsw": 0, "p50_us": cost[k, r] * 1e4, "freq_mhz": None}
        for k in range(launches)
        for r in range(rounds_each)
    ]  # fmt: skip
    return Record(_variant(name), Path(), rounds=entries)


def test_what_disturbs_a_whole_round_cancels_and_a_place_in_the_order_does_not_look_like_speed() -> None:
    rng, shape = np.random.default_rng(0), (3, 20)
    disturbed = np.exp(rng.normal(0, 0.7, shape))  # the host is up to several times slower, for all arms alike
    order = np.argsort(rng.random((*shape, 2)), axis=2)
    by_place = np.where(order == 0, 1.1, 1.0)  # whoever is first pays 10 %
    noise = np.exp(rng.normal(0, 0.02, (*shape, 2)))
    cost = disturbed[..., None] * by_place * noise
    a, b = (_record(f"{name}-1", cost[..., i], order[..., i]) for i, name in enumerate("ab"))
    same = rows.speed_ratios(a, b, 3, 0)["wall"]
    assert same[1] <= 1.0 <= same[2]
    assert same[2] - same[1] < 0.25
    twice = _record("c-1", 2.0 * cost[..., 0], order[..., 0])
    assert rows.speed_ratios(twice, a, 3, 0)["wall"] == pytest.approx((0.5, 0.5, 0.5))


# --- the worker's own parts ------------------------------------------------------------------------------------------


def test_laps_add_up_to_the_time_that_passed() -> None:
    start = time.perf_counter_ns()
    times = laps(lambda: time.sleep(0.001), 0.02, 1)
    passed = time.perf_counter_ns() - start
    assert 0.02e9 <= times.sum() <= passed
    assert times.min() >= 1e6
    assert len(laps(lambda: None, 0.0, 7)) == 7


@pytest.mark.parametrize(
    ("given", "fixed", "told"),
    [
        ((-1, 28, 28, 3), (1, 28, 28, 3), False),
        ((4, 3, 8, 8), (4, 3, 8, 8), False),
        ((-1, 3, -1, -1), (1, 3, 224, 224), True),
        ((-1, -1, -1, 3), (1, 224, 224, 3), True),
        ((-1, -1, 32, 32), (1, 3, 32, 32), True),
        ((-1, -1), (1, 1), True),
        ((), (), False),
    ],
)
def test_unknown_dimensions_are_chosen_and_said(given: tuple[int, ...], fixed: tuple[int, ...], told: bool) -> None:
    shape, note = fixed_shape(TensorSpec("x", np.dtype("float32"), given))
    assert shape == fixed
    assert bool(note) == told


@pytest.mark.parametrize("kind", ["uint8", "int8", "int64", "float32", "float16", "bool"])
def test_random_inputs_have_the_dtype_asked_for_and_repeat(kind: str) -> None:
    spec = TensorSpec("x", np.dtype(kind), (-1, 3, 8, 8))
    a, b = random_samples([spec], 1), random_samples([spec], 1)
    assert a.at(0)["x"].dtype == spec.dtype
    assert a.at(0)["x"].shape == (1, 3, 8, 8)
    assert all((a.at(i)["x"] == b.at(i)["x"]).all() for i in range(a.count))
    assert not (a.at(0)["x"] == random_samples([spec], 2).at(0)["x"]).all()


def test_a_text_input_is_refused() -> None:
    with pytest.raises(InputError, match="dtype"):
        random_samples([TensorSpec("x", np.dtype("object"), (1,))], 0)


# --- which rows ------------------------------------------------------------------------------------------------------


def _target(*precisions: str, suffix: str = ".onnx") -> Target:
    models = {p: ModelFile(Path(f"{p}{suffix}"), f"{p}{suffix}", "0" * 64, 1, p) for p in precisions}
    return Target("m", models, None, "")


def test_the_rows_of_a_bundle_start_with_the_baseline() -> None:
    variants, notes = plan_variants([_target("fp32", "int8")], BenchConfig(), "single", 2)
    assert [variant.id for variant in variants] == ["ort-fp32-t1", "ov-fp32-t1", "ort-int8-t1", "ov-int8-t1"]
    assert {variant.hint for variant in variants} == {"f32"}
    assert notes == []


def test_bf16_is_the_fp32_file_named_for_what_it_is_and_only_where_it_exists() -> None:
    variants, notes = plan_variants(
        [_target("fp32")], BenchConfig(precisions=("bf16", "fp32"), threads=(2, 1)), "single", 2
    )
    ids = [variant.id for variant in variants]
    assert ids == ["ort-fp32-t2", "ort-fp32-t1", "ov-fp32-t2", "ov-fp32-t1", "ov-bf16-t2", "ov-bf16-t1"]
    assert (variants[-1].hint, variants[-1].model.precision) == ("bf16", "fp32")
    assert notes == ["bf16 on onnxruntime left out: on CPU it does not compute in bf16"]


@pytest.mark.parametrize(
    ("target", "config", "why"),
    [
        (_target("fp32"), BenchConfig(precisions=("int8",)), "int8 left out: m has only fp32"),
        (_target("fp32"), BenchConfig(precisions=("f16",), runtimes=("onnxruntime",)), "does not compute in f16"),
        (_target("fp32", suffix=".xml"), BenchConfig(runtimes=("onnxruntime",)), "does not read .xml"),
    ],
)
def test_nothing_to_measure_is_an_error_that_says_why(target: Target, config: BenchConfig, why: str) -> None:
    with pytest.raises(InputError, match=why):
        plan_variants([target], config, "single", 2)
