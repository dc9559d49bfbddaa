from __future__ import annotations

import functools
import math
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_demo.errors import InputError
from edge_demo.runtime import Bound
from stages.bench import charts, pages, power, proc, rows, stage, stats, throughput
from stages.bench.document import BenchDocument
from stages.bench.inputs import Samples
from stages.bench.method import Lab, Plan, Record, enough_memory, plan_for
from stages.bench.model_file import ModelFile
from stages.bench.power import Power
from stages.bench.recommend import Limits
from stages.bench.subject import paced
from stages.bench.system import raspberry_pi, throttled_words
from stages.bench.throughput import _call, _fill
from stages.bench.variants import Variant
from stages.spec import BenchConfig, Scenario

FAKE = (sys.executable, str(Path(__file__).with_name("bench_fake_worker.py")))
PLAN = Plan(launches=2, rounds=6, slice_s=0.01, rewarm_s=0.0, min_runs=1, warm_cap_s=0.1, slice_timeout_s=2.0)


def model(folder: Path, name: str) -> Path:
    """A real ONNX file whose name tells the fake worker what to do: FAULT-COST_US."""
    info = [helper.make_tensor_value_info(side, TensorProto.FLOAT, [1, 2]) for side in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", info[:1], info[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *scenarios: Scenario, name: str = "ok-30") -> BenchDocument:
    monkeypatch.setattr(stage, "Lab", functools.partial(Lab, command=FAKE))
    config = BenchConfig(scenarios=scenarios, precisions=("fp32",), minutes=0.01)
    # One launch: the fake's clock starts anew with each.
    plan = replace(PLAN, launches=1, rounds=12) if name.startswith("drift") else PLAN
    return stage.bench_target(model(folder, name), config, plan=plan)


# --- the parent's side, with a worker whose costs are known ----------------------------------------------------------


def test_every_scenario_has_rows_a_baseline_and_its_own_a_a_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = run(tmp_path, monkeypatch, "single", "throughput", "camera", "cold", "sustain")
    assert list(document.scenarios) == ["single", "throughput", "camera", "cold", "sustain"]
    assert len({row.id for row in document.variants}) == 10
    rows = {row.id: row for row in document.variants}
    throughput = next(row for row in document.variants if row.scenario == "throughput")
    assert throughput.config_effective["jobs_sweep"] == {"2": 1.0, "4": 2.0}
    assert throughput.latency_us is None
    assert throughput.ratio
    assert throughput.ratio.p50 is None
    camera = rows["ort-fp32-t1-camera"].camera
    assert camera
    assert camera.miss_rate == pytest.approx(0.1)
    assert camera.ci95[0] < 0.1 < camera.ci95[1]
    cold = rows["ov-fp32-t1-cold"]
    assert (cold.rounds, cold.fps, cold.cold and cold.cold.n) == ((), None, 4)
    assert cold.ratio
    assert cold.ratio.wall == (1.0, 1.0, 1.0)
    sustain = rows["ort-fp32-t1-sustain"]
    assert sustain.ratio is None
    assert sustain.sustain
    assert sustain.sustain.wall == (1.0, 1.0, 1.0)
    assert document.baseline == "ort-fp32-t1"
    _check_pages(document)


def test_a_plain_model_has_no_e2e(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="neither how to resize a picture nor what its outputs mean"):
        run(tmp_path, monkeypatch, "e2e")
    with pytest.raises(InputError, match=r"accuracy left out for ok-30\.onnx: a plain model says neither"):
        run(tmp_path, monkeypatch, "accuracy")
    document = run(tmp_path, monkeypatch, "single", "e2e")
    assert {row.scenario for row in document.variants} == {"single"}
    assert any(warning.startswith("e2e: ") for warning in document.warnings)


@pytest.mark.parametrize(("fault", "status"), [("hot", "throttled"), ("drift", "drifting"), ("ok", "clean")])
def test_a_hot_or_drifting_host_is_named(
    fault: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = run(tmp_path, monkeypatch, "single", name=f"{fault}-30")
    assert document.status == status
    energy = document.variants[0].energy
    assert energy
    assert (energy.source, energy.j_per_inf) == (("rapl", 0.01) if fault == "hot" else ("none", None))
    if fault == "hot":
        assert document.variants[0].fps
        assert document.variants[0].fps.median is None


def test_a_sustained_load_that_slows_down_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = run(tmp_path, monkeypatch, "sustain", name="drift-30")
    sustain = document.variants[0].sustain
    assert sustain
    assert sustain.wall[0] == pytest.approx(1.02**-4, rel=1e-6)
    assert sustain.wall[2] < 1.0


def test_plans_fit_their_scenario() -> None:
    camera = plan_for("camera", PLAN, 1.0)
    assert (camera.rounds, camera.slice_s) == (2, 1.0)
    assert plan_for("cold", PLAN, 1.0).rounds == 0
    sustain = plan_for("sustain", PLAN, 0.5)
    assert sustain.rounds * sustain.slice_s == pytest.approx(30)
    assert plan_for("single", PLAN, 1.0) == PLAN
    assert (plan_for("accuracy", PLAN, 1.0).launches, plan_for("accuracy", PLAN, 1.0).rounds) == (1, 0)


def test_where_memory_is_short_one_worker_lives_at_a_time(tmp_path: Path) -> None:
    big = ModelFile(Path("m.onnx"), "m.onnx", "0", 10**9, "fp32")
    arms = [Record(Variant(str(i), "onnxruntime", "fp32", "f32", 1, big), Path()) for i in range(3)]
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 8000000 kB\n")
    assert not enough_memory(arms, tmp_path)
    assert enough_memory(arms[:1], tmp_path)
    assert enough_memory(arms, tmp_path / "unknown")


# --- the timed bodies ------------------------------------------------------------------------------------------------


def _bound(run: Any) -> tuple[Bound, Samples]:
    buffer = np.zeros(1, np.float32)
    return Bound({"x": buffer}, {}, run), Samples(1, lambda index: {"x": buffer}, [])


def test_a_camera_s_frames_come_when_they_are_due() -> None:
    timed = paced(*_bound(lambda: None), 100.0)(0.2, 1)
    assert timed.more["frames"] == 20
    assert timed.wall_ns >= 0.2e9
    assert timed.n + timed.more["missed"] >= 20


def test_a_model_slower_than_the_camera_misses_frames_and_latency_counts_from_the_due_time() -> None:
    """25 ms of work every 10 ms: about three in five frames are dropped, none waits longer than a period to start."""
    timed = paced(*_bound(lambda: time.sleep(0.025)), 100.0)(0.4, 1)
    assert timed.more["missed"] == timed.more["frames"] == 40
    assert timed.n <= 17
    assert timed.laps is not None
    assert timed.laps.min() >= 25e6
    assert timed.more["mean_us"] == pytest.approx(timed.laps.mean() / 1e3)


def test_callers_count_every_run_and_pass_on_a_failure() -> None:
    counts = [0, 0, 0]

    def one(which: int) -> None:
        counts[which] += 1
        time.sleep(0.001)

    bounds = [Bound({}, {}, functools.partial(one, i)) for i in range(3)]
    timed = _call(bounds, 0.05, 1)
    assert timed.n == sum(counts)
    assert min(counts) > 0
    assert timed.wall_ns >= 0.05e9

    def broken() -> None:
        raise RuntimeError("bad kernel")

    with pytest.raises(RuntimeError, match="bad kernel"):
        _call([bounds[0], Bound({}, {}, broken)], 0.01, 1)


def test_a_caller_that_ends_last_costs_no_throughput() -> None:
    """One call of 60 ms in a window of 30 ms: the quick caller's rate is that of its own 30 ms."""

    def sleeping(seconds: float) -> Bound:
        return Bound({}, {}, functools.partial(time.sleep, seconds))

    before = time.perf_counter_ns()
    timed = _call([sleeping(0.005), sleeping(0.06)], 0.03, 1)
    assert timed.wall_ns < 0.8 * (time.perf_counter_ns() - before)


@pytest.mark.parametrize("jobs", [1, 3, 4])
def test_every_request_of_the_queue_runs_equally_often(jobs: int) -> None:
    class Queue:
        started = waited = 0

        def start_async(self) -> None:
            self.started += 1

        def wait_all(self) -> None:
            self.waited = self.started

    queue = Queue()
    timed = _fill(queue, [{}] * jobs, 1e-4, 5)
    assert timed.n == queue.started == queue.waited
    assert timed.n >= 5
    assert timed.n % jobs == 0


@pytest.mark.parametrize("slice_ms", [100, 107, 113])
def test_a_short_slice_of_a_slow_model_has_the_rate_of_a_long_one(
    slice_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two streams of 13 ms, by a clock of our own: a stream that idles at the end would cost up to 6 percent."""
    now, latency, free_at = [0], 13_000_000, [0, 0]
    monkeypatch.setattr(throughput.time, "perf_counter_ns", lambda: now[0])

    class Queue:
        def start_async(self) -> None:
            first = min(range(2), key=free_at.__getitem__)
            now[0] = max(now[0], free_at[first])
            free_at[first] = now[0] + latency

        def wait_all(self) -> None:
            now[0] = max(free_at)

    timed = _fill(Queue(), [{}] * 2, slice_ms / 1e3, 1)
    assert timed.n / timed.wall_ns == pytest.approx(2 / latency)


def test_without_rounds_the_host_is_judged_by_the_starts(tmp_path: Path) -> None:
    some = ModelFile(Path("m.onnx"), "m.onnx", "0", 1, "fp32")
    record = Record(Variant("a", "onnxruntime", "fp32", "f32", 1, some, "cold"), tmp_path / "laps")
    record.loads = [{"cpu_ms": 70.0, "run_delay_ms": 30.0}, {"cpu_ms": 80.0, "run_delay_ms": 20.0}]
    host = rows.judge_host([record], None, 0)
    assert (host.interference, host.status) == (0.25, "contended")
    record.loads = [{"cpu_ms": 70.0, "run_delay_ms": None}]
    assert rows.judge_host([record], None, 0).interference is None


# --- statistics ------------------------------------------------------------------------------------------------------


def test_the_early_stopping_estimate_is_above_the_percentile_as_often_as_promised() -> None:
    rng, truth = np.random.default_rng(0), math.log(10) * 1e6
    above = 0
    for _ in range(300):
        value = stats.early_stop((rng.exponential(1e6, 400)).astype(np.int64), 90)
        assert value is not None
        above += value >= truth - 1
    assert above >= 294  # 98 %
    assert stats.early_stop(np.arange(63), 90) is None
    assert stats.early_stop(np.arange(64), 90) == 63


def test_p99_9_needs_6636_samples() -> None:
    assert stats.percentile(np.arange(6635), 99.9) is None
    assert stats.percentile(np.arange(6636), 99.9) == 6629


def test_a_histogram_keeps_every_sample_in_a_bin_that_holds_it() -> None:
    samples = np.random.default_rng(0).integers(1_000, 10_000_000, 1000)
    bins = stats.histogram(samples)
    assert sum(count for _, count in bins) == 1000
    for edge, _ in bins:
        below = sum(count for upper, count in bins if upper <= edge)
        assert below == (samples <= edge * (1 + 1e-9)).sum()


def test_drift_is_found_when_it_is_there_and_not_when_it_is_not() -> None:
    rng = np.random.default_rng(0)
    still = [stats.drift(np.exp(rng.normal(0, 0.05, 60))) for _ in range(100)]
    assert sum(value != 0.0 for value in still) <= 2
    moved = stats.drift(np.exp(np.linspace(0, 0.2, 60) + rng.normal(0, 0.02, 60)))
    assert moved == pytest.approx(math.exp(0.2) - 1, rel=0.1)
    assert stats.drift(np.ones(5)) is None


# --- sensors ---------------------------------------------------------------------------------------------------------


def _write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def test_sensors_are_read_where_they_are_and_null_elsewhere(tmp_path: Path) -> None:
    assert (proc.temp_c(tmp_path), proc.throttle_count(tmp_path), power.power(tmp_path)) == (None, None, None)
    throttle = "sys/devices/system/cpu/cpu{}/thermal_throttle/core_throttle_count"
    rapl = "sys/class/powercap/intel-rapl:{}/"
    _write(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/temp": "45500\n",
            "sys/class/thermal/thermal_zone1/temp": "61000\n",
            throttle.format(0): "3\n",
            throttle.format(1): "4\n",
            rapl.format("0") + "energy_uj": "5000000\n",
            rapl.format("0") + "max_energy_range_uj": "262143328850\n",
            rapl.format("0:0") + "energy_uj": "9999999\n",
        },
    )
    assert proc.temp_c(tmp_path) == 61.0
    assert proc.throttle_count(tmp_path) == 7
    assert power.power(tmp_path) == Power("rapl", joules=5.0, wrap=262143.32885)
    at = functools.partial(Power, "rapl", wrap=100.0)
    assert power.energy_between(at(joules=5.0), at(joules=7.5), 1.0) == 2.5
    assert power.energy_between(at(joules=99.0), at(joules=1.5), 1.0) == 2.5
    assert power.energy_between(None, at(joules=1.5), 1.0) is None


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        ({"hwmon0/name": "ina219", "hwmon0/power1_input": "4500000"}, 4.5),
        ({"hwmon0/name": "coretemp", "hwmon1/name": "ina226", "hwmon1/power1_input": "2000000"}, 2.0),
        # A Jetson: three rails of one chip; VDD_IN feeds the other two.
        (
            {
                "hwmon2/name": "ina3221",
                **{f"hwmon2/in{n}_label": name for n, name in enumerate(("VDD_CPU", "VDD_IN", "VDD_SOC"), 1)},
                **{f"hwmon2/in{n}_input": "5000" for n in (1, 2, 3)},
                **{f"hwmon2/curr{n}_input": str(300 * n) for n in (1, 2, 3)},
            },
            3.0,
        ),
        ({"hwmon0/name": "ina3221", "hwmon0/in1_label": "A", "hwmon0/in1_input": "5", "hwmon0/curr1_input": "5"}, None),
        # Two chips: which of them is the board's supply is not known.
        (
            {f"hwmon{n}/{name}": text for n in (0, 1) for name, text in (("name", "ina219"), ("power1_input", "9"))},
            None,
        ),
    ],
)  # fmt: skip
def test_watts_of_an_ina_chip(files: dict[str, str], watts: float | None, tmp_path: Path) -> None:
    _write(tmp_path, {f"sys/class/hwmon/{name}": f"{value}\n" for name, value in files.items()})
    got = power.power(tmp_path)
    assert got == (None if watts is None else Power("ina", watts=watts))
    if got and watts:
        assert power.energy_between(got, replace(got, watts=1.0), 2.0) == watts + 1.0


def test_watts_of_a_raspberry_pi_5_are_those_of_its_rails() -> None:
    told = """ 3V7_WL_SW_A current(0)=0.10000000A
  VDD_CORE_A current(7)=2.00000000A
 3V7_WL_SW_V volt(8)=3.70000000V
  VDD_CORE_V volt(15)=0.75000000V
     EXT5V_V volt(24)=5.10000000V
"""
    got = power.pmic_power(told)
    assert got
    assert got.source == "pmic"
    assert got.watts == pytest.approx(0.37 + 1.5)
    assert power.pmic_power("error=1") is None


def test_a_raspberry_pi_s_throttling_bits_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert throttled_words("throttled=0x50005") == "now: under-voltage, throttled; since boot: under-voltage, throttled"
    assert throttled_words("throttled=0x0") == "now: none; since boot: none"
    assert throttled_words("?") == "?"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert raspberry_pi() == {}
    fake = tmp_path / "vcgencmd"
    fake.write_text('#!/bin/sh\ntest "$1" = measure_temp && echo "temp=48.3\'C"\n')
    fake.chmod(0o755)
    assert raspberry_pi() == {"temperature": "temp=48.3'C"}


# --- pages -----------------------------------------------------------------------------------------------------------


def _check_pages(document: BenchDocument) -> None:
    nasty = document.model_copy(update={"target": "<b>&\"'</b>", "warnings": ("<script>alert(1)</script>",)})
    page = pages.html(nasty)
    assert "<script" not in page
    assert "<b>&" not in page
    for outside in ("http://", "https://", "src=", "@import", "url("):
        assert outside not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert all(row.id.removesuffix(f"-{row.scenario}") in page for row in document.variants)
    drawn = charts.charts(document)
    assert [title for title, _, _ in drawn] == [
        "Speed against the baseline, round by round", "Latency distribution", "Minutes under load",
    ]  # fmt: skip
    for _, _, drawing in drawn:
        svg = ET.fromstring(drawing[: drawing.index("</svg>") + 6])
        for element in svg.iter():
            for name in ("x", "cx", "x1", "x2"):
                assert -1 <= float(element.get(name, 0)) <= charts.WIDTH + 1
    text = pages.markdown(document)
    assert "| ort-fp32-t1 |" in text
    assert document.recommended.reason in text


def test_a_variant_has_one_colour_in_every_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = charts.palette(run(tmp_path, monkeypatch, "single", "throughput", "cold"))
    for name, others in (("ort-fp32-t1", ("ort-fp32-t1-cold",)), ("ov-fp32-t1", ("ov-fp32-t1-cold",))):
        assert {colours[other] for other in others} == {colours[name]}
    assert len(set(colours.values())) == 2


def test_a_distribution_starts_at_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = charts.ecdf(run(tmp_path, monkeypatch, "single"))
    bottom = 320 - charts.BOTTOM
    for points in re.findall(r'polyline points="([^"]+)"', drawing):
        assert float(points.split()[0].split(",")[1]) == bottom


def test_the_pages_say_how_answers_differ_and_how_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.bench.document import Accuracy, Paired

    document = run(tmp_path, monkeypatch, "single")
    accuracy = Accuracy(metric="accuracy", value=0.95, n=100, of=100, ci95=(0.9, 0.98), metrics={}, vs_fp32=-0.02,
                        paired=Paired(better=1, worse=3, p=0.625))  # fmt: skip
    first, second = document.variants
    assert second.difference
    second = second.model_copy(
        update={
            "precision": "int8",
            "accuracy": accuracy,
            "difference": second.difference.model_copy(update={"agreement": 0.93}),
        }
    )
    page = pages.html(document.model_copy(update={"variants": (first, second)}))
    assert "accuracy -2.00 points against FP32 (1 items better, 3 worse, p = 0.62)" in page
    assert "same answer as ort-fp32-t1 on 93 % of 4" in page
    demands = stage.Demands(limits=Limits(target_fps=30.0, max_rss_mb=200.0), fail_if=("p50>+5%",))
    words = ("--target-fps", "30", "--max-rss", "200", "--fail-if", "p50>+5%")
    assert stage._command([], BenchConfig(), demands)[-6:] == words


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.93, 0.966), (0.0, 6123.0), (1e-4, 3e-4), (2.0, 2.0)])
def test_axis_steps_lie_within_and_are_few(low: float, high: float) -> None:
    made = charts.steps(low, high)
    assert 1 <= len(made) <= 8
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in made)


def test_accuracy_and_stages_are_drawn_where_they_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.bench.document import Accuracy

    document = run(tmp_path, monkeypatch, "single")
    accuracy = Accuracy(metric="accuracy", value=0.95, n=100, of=100, ci95=(0.9, 0.98), metrics={}, vs_fp32=0.0)
    stages = {"decode": 700.0, "resize": 200.0, "infer": 100.0, "result": 10.0}
    rows = tuple(row.model_copy(update={"accuracy": accuracy, "stage_us": stages}) for row in document.variants)
    titles = [title for title, _, _ in charts.charts(document.model_copy(update={"variants": rows}))]
    assert titles[0] == "Accuracy against latency"
    assert "From picture to answer" in titles
