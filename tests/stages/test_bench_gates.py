from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_demo.errors import GateError, InputError
from stages.bench import stage, stats, to_json
from stages.bench.compare import ratio_of_ratios, read_base
from stages.bench.document import Accuracy, BenchDocument
from stages.bench.gates import Gate, judge, level, overall, parse, z_of
from stages.bench.method import Lab, Plan
from stages.bench.recommend import Limits
from stages.bench.stage import Demands
from stages.spec import BenchConfig

FAKE = (sys.executable, str(Path(__file__).with_name("bench_fake_worker.py")))
PLAN = Plan(launches=1, rounds=6, slice_s=0.01, rewarm_s=0.0, min_runs=1, warm_cap_s=0.1, slice_timeout_s=2.0)


# --- the parser ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "metric", "limit"),
    [
        ("p50>+5%", "p50", 0.05),
        (" accuracy < -0.5 pp ", "accuracy", 0.005),
        ("fps<-10%", "fps", 0.10),
        ("rss>+10%", "rss", 0.10),
        ("size>+0%", "size", 0.0),
        ("load>+12.5%", "load", 0.125),
    ],
)
def test_expressions(text: str, metric: str, limit: float) -> None:
    gate = parse(text)
    assert (gate.metric, gate.limit) == (metric, pytest.approx(limit))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not METRIC"),
        ("p50", "not METRIC"),
        ("p50>5", "not METRIC"),
        ("p50>5%", "not METRIC"),
        ("p50>+5%%", "not METRIC"),
        ("p50>+1e3%", "not METRIC"),
        ("p95>+5%", "no metric 'p95'"),
        ("p50<-5%", "no limit on getting worse; type p50>+5%"),
        ("accuracy>+1pp", "type accuracy<-1pp"),
        ("accuracy<-1%", "judged in pp"),
        ("rss>+1pp", "judged in %"),
    ],
)
def test_what_does_not_parse_says_why(text: str, why: str) -> None:
    with pytest.raises(InputError, match="--fail-if") as caught:
        parse(text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


# --- judging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "change", "floor", "outcome"),
    [
        ("p50>+5%", (0.10, 0.06, 0.14), 0.0, "failed"),
        ("p50>+5%", (0.10, 0.04, 0.16), 0.0, "inconclusive"),
        ("p50>+5%", (0.01, -0.02, 0.04), 0.0, "passed"),
        ("p50>+5%", (-0.30, -0.35, -0.25), 0.0, "passed"),
        ("p50>+5%", (0.10, 0.06, 0.14), 0.08, "inconclusive"),
        # What a noisy run cannot rule out it does not pass either.
        ("p50>+5%", (0.20, 0.18, 0.22), 0.50, "inconclusive"),
        ("p50>+5%", (0.01, -0.01, 0.03), 0.50, "passed"),
        ("fps<-5%", (-0.10, -0.14, -0.06), 0.0, "failed"),
        ("fps<-5%", (-0.10, -0.16, -0.04), 0.0, "inconclusive"),
        ("fps<-5%", (0.10, 0.06, 0.14), 0.0, "passed"),
        ("accuracy<-0.5pp", (-0.02, -0.03, -0.01), 0.0, "failed"),
        ("accuracy<-0.5pp", (0.0, 0.0, 0.0), 0.0, "passed"),
        ("size>+0%", (0.0, 0.0, 0.0), 0.0, "passed"),
    ],
)
def test_a_gate_fails_only_when_the_whole_interval_is_beyond(
    expression: str, change: tuple[float, float, float], floor: float, outcome: str
) -> None:
    assert judge(parse(expression), "a", "b", change, floor).outcome == outcome


def test_what_cannot_be_compared_is_inconclusive_and_says_why() -> None:
    row = judge(parse("p50>+5%"), "a", "b", "another host")
    assert (row.outcome, row.reason, row.change) == ("inconclusive", "another host", None)
    assert overall([row]) == "inconclusive"
    assert overall([]) == "passed"


def test_many_gates_share_the_five_percent() -> None:
    assert level(1) == pytest.approx(0.95)
    assert level(10) == pytest.approx(0.995)
    assert z_of(0.95) == pytest.approx(stats.Z95)


def test_the_same_artifact_fails_and_a_twentieth_slower_one_passes_as_rarely_as_promised() -> None:
    """Simulated runs: ratios scatter by 3 % per round and 1 % per launch, two runs by what `session` says."""
    rng, gate, session = np.random.default_rng(0), Gate("p50>+5%", "p50", 0.05), stats.FLOOR["noisy"]

    def run(true: float, number: int) -> stats.Estimate:
        drift = rng.normal(0, session / stats.Z95 / np.sqrt(2)) + rng.normal(0, 0.01, (3, 1))
        return stats.median_estimate(true * np.exp(drift + rng.normal(0, 0.03, (3, 20))), number)

    def outcomes(true: float) -> list[str]:
        pairs = [(run(1.0 / true, i), run(1.0, i + 500)) for i in range(60)]
        made = [ratio_of_ratios(new, old, session, 0.95, invert=True) for new, old in pairs]
        return [judge(gate, "a", "a", change).outcome for change in made]

    assert outcomes(1.0).count("failed") == 0
    assert outcomes(1.05).count("failed") <= 6
    assert outcomes(1.25).count("failed") >= 57


# --- whole documents, from a worker whose costs are known ------------------------------------------------------------


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "Lab", functools.partial(Lab, command=FAKE))


def model(folder: Path, name: str, extra: int = 0) -> Path:
    """A real ONNX file whose name tells the fake worker what to do: FAULT-COST_US."""
    folder.mkdir(exist_ok=True)
    info = [helper.make_tensor_value_info(side, TensorProto.FLOAT, [1, 2]) for side in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g" * (1 + extra), info[:1], info[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def measured(target: Path, demands: Demands | None = None) -> BenchDocument:
    config = BenchConfig(precisions=("fp32",))
    return stage.bench_target(target, config, plan=PLAN, demands=demands or Demands())


@pytest.mark.usefixtures("faked")
def test_against_compares_old_and_new_in_the_same_rounds(tmp_path: Path) -> None:
    old, new = model(tmp_path / "old", "ok-30"), model(tmp_path / "new", "ok-36", extra=400)
    demands = Demands(against=old, fail_if=("p50>+5%", "fps<-50%", "size>+10%", "rss>+10%", "accuracy<-1pp"))
    document = measured(new, demands)
    assert document.baseline == "old-ort-fp32-t1"
    assert [row.id for row in document.variants] == [f"{k}-{r}-fp32-t1" for r in ("ort", "ov") for k in ("old", "new")]
    found = document.comparison
    assert found
    assert (found.how, found.outcome) == ("against", "failed")
    outcomes = {gate.expression: gate.outcome for gate in found.gates if gate.variant == "new-ort-fp32-t1"}
    assert outcomes == {
        "p50>+5%": "failed", "fps<-50%": "passed", "size>+10%": "failed", "rss>+10%": "passed",
        "accuracy<-1pp": "inconclusive",
    }  # fmt: skip
    (p50,) = [gate for gate in found.gates if gate.variant == "new-ov-fp32-t1" and gate.expression == "p50>+5%"]
    assert p50.change == pytest.approx(0.2)
    assert p50.against == "old-ov-fp32-t1"
    assert document.recommended.variant.startswith("new-")


@pytest.mark.usefixtures("faked")
def test_compare_is_by_the_ratio_to_each_run_s_own_baseline(tmp_path: Path) -> None:
    base = measured(model(tmp_path, "ok-30"))
    (tmp_path / "base.json").write_text(to_json(base))
    # A host twice as slow: every time doubles, no ratio changes.
    again = measured(model(tmp_path, "ok-60"), Demands(base=tmp_path / "base.json", fail_if=("p50>+5%", "rss>+10%")))
    assert again.comparison
    by = {(gate.variant, gate.expression): gate for gate in again.comparison.gates}
    assert by["ov-fp32-t1", "p50>+5%"].outcome == "passed"
    assert by["ov-fp32-t1", "p50>+5%"].change == pytest.approx(0.0)
    assert by["ort-fp32-t1", "rss>+10%"].outcome == "passed"
    # The baseline itself can only be compared by its times: same host, both quiet.
    assert by["ort-fp32-t1", "p50>+5%"].outcome == "failed"
    assert any("is of ok-30.onnx" in note for note in again.comparison.notes)


@pytest.mark.usefixtures("faked")
def test_on_another_host_only_ratios_are_compared(tmp_path: Path) -> None:
    base = measured(model(tmp_path, "ok-30"))
    plain = json.loads(to_json(base))
    plain["system"]["fingerprint"] = "another"
    (tmp_path / "base.json").write_text(json.dumps(plain))
    demands = Demands(base=tmp_path / "base.json", fail_if=("p50>+5%", "load>+5%"))
    found = measured(tmp_path / "ok-30.onnx", demands).comparison
    assert found
    assert not found.same_host
    assert {gate.outcome for gate in found.gates if gate.expression == "load>+5%"} == {"inconclusive"}
    assert [gate.outcome for gate in found.gates if gate.expression == "p50>+5%"] == ["inconclusive", "passed"]


@pytest.mark.usefixtures("faked")
def test_a_row_that_worked_and_is_broken_now_fails_every_gate(tmp_path: Path) -> None:
    old, new = model(tmp_path / "old", "ok-30"), model(tmp_path / "new", "ok-30")
    base = measured(old)
    failed = [{**row, "status": "failed", "reason": "boom"} for row in json.loads(to_json(base))["variants"]]
    broken = BenchDocument.model_validate({**json.loads(to_json(base)), "variants": failed})
    from stages.bench.compare import compare

    found = compare(broken, base, "base.json", [parse("p50>+50%")])
    assert [gate.outcome for gate in found.gates] == ["failed", "failed"]
    assert "boom" in found.gates[0].reason
    assert new.is_file()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("not json", "not JSON"),
        ("[]", "schema is None"),
        ('{"schema": "pipeline.bench/9"}', "schema is 'pipeline.bench/9', not 'pipeline.bench/1'"),
        ('{"schema": "pipeline.bench/1"}', "created: Field required"),
    ],
)
def test_a_base_that_is_none_is_one_line(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "base.json").write_text(content)
    with pytest.raises(InputError, match=r"base\.json") as caught:
        read_base(tmp_path / "base.json")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_base(tmp_path / "absent.json")


@pytest.mark.usefixtures("faked")
def test_wrong_demands_are_told_before_anything_is_measured(tmp_path: Path) -> None:
    target, other = model(tmp_path, "ok-30"), model(tmp_path / "b", "ok-20")
    base = tmp_path / "base.json"
    base.write_text(to_json(measured(target)))
    renamed = json.loads(base.read_text())
    for number, row in enumerate(renamed["variants"]):
        row["id"] = f"other-{number}"
    (tmp_path / "none.json").write_text(json.dumps(renamed))
    for demands, why in (
        (Demands(fail_if=("p50>+5%",)), "nothing to compare with"),
        (Demands(fail_if=("p50",), base=base), "not METRIC"),
        (Demands(base=base, against=other), "exclude each other"),
        (Demands(against=target), "named twice"),
        (Demands(base=tmp_path / "none.json"), "no row in common"),
    ):
        with pytest.raises(InputError, match=why):
            measured(target, demands)
    with pytest.raises(InputError, match="compares one target"):
        stage.bench_target([target, other], BenchConfig(), plan=PLAN, demands=Demands(against=base))


# --- accuracy --------------------------------------------------------------------------------------------------------


def _scored(base: BenchDocument, wrong: set[int], n: int, sha256: str) -> BenchDocument:
    value = 1 - len(wrong) / n
    accuracy = Accuracy(metric="accuracy", value=value, n=n, of=n, ci95=stats.wilson(n - len(wrong), n), metrics={},
                        vs_fp32=0.0, sample_sha256=sha256, wrong=tuple(sorted(wrong)))  # fmt: skip
    rows = tuple(row.model_copy(update={"accuracy": accuracy}) for row in base.variants)
    return base.model_copy(update={"variants": rows})


@pytest.mark.usefixtures("faked")
def test_accuracy_is_judged_item_by_item_where_the_items_are_the_same(tmp_path: Path) -> None:
    from stages.bench.compare import compare

    plain, gates = measured(model(tmp_path, "ok-30")), [parse("accuracy<-0.5pp")]
    old = _scored(plain, set(range(50)), 1000, "a")
    worse = _scored(plain, set(range(80)), 1000, "a")
    assert compare(worse, old, "b", gates).outcome == "failed"  # 30 items only lost: 3 points
    assert compare(old, old, "b", gates).outcome == "passed"
    slightly = _scored(plain, set(range(56)), 1000, "a")
    assert compare(slightly, old, "b", gates).outcome == "inconclusive"
    # On unknown items two points are within what two samples of 1,000 differ by; on the same ones they are not.
    elsewhere = _scored(plain, set(range(70)), 1000, "b")
    assert compare(_scored(plain, set(range(70)), 1000, "a"), old, "b", gates).outcome == "failed"
    assert compare(elsewhere, old, "b", gates).outcome == "inconclusive"


def test_mcnemar_and_the_paired_interval_against_scipy_s_definitions() -> None:
    from scipy.stats import binomtest

    for better, worse in ((0, 0), (3, 9), (10, 2), (7, 7)):
        want = binomtest(better, better + worse).pvalue if better + worse else 1.0
        assert stats.mcnemar(better, worse) == pytest.approx(want)
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        better, worse, _rest = rng.multinomial(500, (0.02, 0.05, 0.93))
        low, high = stats.paired_share(int(better), int(worse), 500, stats.Z95)
        held += low <= -0.03 <= high
    assert held >= 278  # 92.7 %


# --- limits to reach -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("faked")
def test_the_recommendation_obeys_limits_and_says_when_none_is_met(tmp_path: Path) -> None:
    target = model(tmp_path, "ok-30")
    met = measured(target, Demands(limits=Limits(target_fps=1000, max_rss_mb=10))).recommended
    assert met.met is True
    assert "meets FPS >= 1000, RSS <= 10 MB" in met.reason
    unmet = measured(target, Demands(limits=Limits(target_fps=1e6))).recommended
    assert unmet.met is False
    assert unmet.reason.startswith("no variant meets what was asked; of ort-fp32-t1: 33333.3 FPS, 1e+06")
    blind = measured(target, Demands(limits=Limits(min_accuracy=0.5))).recommended
    assert "accuracy was not measured, 0.5 asked" in blind.reason


@pytest.mark.usefixtures("faked")
def test_the_command_exits_with_3_when_a_gate_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.cli import call

    monkeypatch.setitem(stage.PLANS, "quick", PLAN)
    old, new = model(tmp_path / "old", "ok-30"), model(tmp_path / "new", "ok-36")
    words = ["bench", str(new), "--precision", "fp32", "--against", str(old), "--fail-if", "p50>+5%"]
    assert call(words) == GateError.exit_code == 3
    assert call([*words[:-1], "p50>+50%"]) == 0
    assert call(["bench", str(new), "--fail-if", "p50"]) == 2
    files = [tmp_path / "out.md", tmp_path / "out.html"]
    words = ["bench", str(new), "--target-fps", "1e6", "--md", str(files[0]), "--html", str(files[1])]
    assert call(words) == 3
    assert all("ok-36" in file.read_text() for file in files)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "bench needs a TARGET"),
        (["x.onnx", "--fps", "25"], "--fps has no effect without --scenario camera"),
        (["x.onnx", "--minutes", "1"], "--minutes has no effect without --scenario sustain"),
        (["x.onnx", "--scenario", "throughput", "--threads", "2"], "--threads has no effect on throughput"),
        (["x.onnx", "--scenario", "fast"], "bench.scenarios"),
        (["x.onnx", "--html", "absent/a.html"], "no such folder absent"),
        (["--system", "x.onnx"], "--system measures nothing"),
    ],
)
def test_options_without_effect_are_errors(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli import call

    assert call(["bench", *words]) == 2
    assert why in capsys.readouterr().err
