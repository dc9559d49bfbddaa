"""The report against hand-made results: every number there, nothing invented, nothing fetched, nothing unescaped."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix

from edge_demo.errors import Error, InputError
from edge_demo.manifest import Resize
from pipeline import report, report_format
from pipeline.report_document import ReportDocument
from stages.generalization import Sampled, judge
from stages.spec import (
    BenchResult,
    BenchRow,
    BundleResult,
    Candidate,
    DataResult,
    EvaluateResult,
    EvaluateRow,
    ExportResult,
    Gate,
    Generalization,
    LayerRow,
    ModelConfig,
    ParityRow,
    QuantizeResult,
    ReportConfig,
    Step,
    TrainConfig,
    TrainResult,
)
from stages.statistics import wilson

VOID = {"meta", "img", "br", "path", "use", "rect", "hr", "link", "input"}


@dataclass(frozen=True, slots=True)
class Run:
    """The results a report is made of, in the order `report.run` takes them."""

    data: DataResult
    train: TrainResult
    export: ExportResult
    quantize: QuantizeResult
    evaluate: EvaluateResult
    bundle: BundleResult
    bench: BenchResult
    folder: Path

    def report(self, config: ReportConfig | None = None) -> tuple[str, str, dict[str, Any]]:
        """(HTML, Markdown, JSON) of this run."""
        out_dir = self.folder / "report"
        out_dir.mkdir(exist_ok=True)
        result = report.run(config or ReportConfig(), *self.results(), out_dir=out_dir, on_step=lambda step: None)
        assert sorted(file.name for file in out_dir.iterdir()) == ["report.html", "report.json", "report.md"]
        html, markdown, facts = (
            (out_dir / name).read_text("utf-8") for name in (result.html, result.markdown, result.json_file)
        )
        return html, markdown, json.loads(facts)

    def results(self) -> tuple[Any, ...]:
        return self.data, self.train, self.export, self.quantize, self.evaluate, self.bundle, self.bench

    def but(self, **changed: Any) -> Run:
        """The same run with fields of its results replaced: `data={"composed": True}`."""
        names = ("data", "train", "export", "quantize", "evaluate", "bundle", "bench")
        parts = {name: getattr(self, name).model_copy(update=changed.get(name, {})) for name in names}
        return Run(**parts, folder=self.folder)


def make_predictions(truth: np.ndarray, num_labels: int, share_wrong: float) -> dict[str, np.ndarray]:
    """Seeded answers: about `share_wrong` of them are the next class."""
    rng = np.random.default_rng(5)
    wrong = rng.random(len(truth)) < share_wrong
    answer = np.where(wrong, (truth + 1 + (rng.random(len(truth)) < 0.3)) % num_labels, truth)
    score = np.where(wrong, rng.uniform(0.3, 0.98, len(truth)), rng.uniform(0.8, 1, len(truth))).astype(np.float32)
    return {"truth": truth, "answer": answer.astype(np.int64), "score": score}


def write_bench(folder: Path, rows: tuple[BenchRow, ...], status: str) -> None:
    """A bench.json that says of each row what the summary leaves out: n = 1,000 and an interval of its accuracy."""

    def variant(row: BenchRow) -> dict[str, Any]:
        accuracy = row.accuracy and {
            "metric": "accuracy", "value": row.accuracy, "n": 1000, "of": 10000, "metrics": {},
            "ci95": [row.accuracy - 0.007, min(1.0, row.accuracy + 0.005)], "vs_fp32": None,
        }  # fmt: skip
        ratio = row.ratio and {
            "baseline": "onnxruntime-fp32-t1", "metric": "cpu", "wall": row.ratio, "p50": row.ratio, "cpu": row.ratio,
            "verdict": "faster",
        }  # fmt: skip
        fps = {
            "median": row.fps, "ci95": None, "clean_slices": 2, "slices": 30, "uncontended_est": 31234.4,
            "reason": "2 of 30 slices were clean, 5 are needed",
        }  # fmt: skip
        return {
            "id": row.id, "runtime": row.runtime, "precision": row.precision, "threads": 1, "model": "m", "status":
            row.status, "config_requested": {}, "accuracy": accuracy, "ratio": ratio,
            "fps": fps if row.status != "failed" else None,
        }  # fmt: skip

    system = {
        "cpu_model": "AMD EPYC 9R14", "arch": "x86_64", "isa": ["avx512_vnni"], "cores_logical": 2,
        "cores_effective": 2, "cgroup_quota": None, "affinity": [0, 1], "governor": None, "freq_max_mhz": None,
        "mem_total_bytes": 8 * 2**30, "mem_available_bytes": None, "swap_total_bytes": 0, "os": "Linux",
        "kernel": "6.1", "virt": None, "board": None, "loadavg": [0.5, 0.4, 0.3], "psi_cpu": None,
        "fingerprint": "ab" * 8,
    }  # fmt: skip
    document = {
        "schema": "pipeline.bench/1", "created": "2030-01-02T03:04:05Z", "command": [], "target": "bundle", "seed": 0,
        "preset": "quick", "method": {}, "seconds": 12.0, "status": status, "interference": 0.1,
        "warnings": ["the host was busy: trust the ratios"] if status != "clean" else [],
        "system": system, "software": {}, "models": [], "baseline": "onnxruntime-fp32-t1",
        "variants": [variant(row) for row in rows],
        "aa": {"metric": "cpu", "median": 1.0, "ci95": [0.99, 1.01], "noise_floor": 0.013, "wall": None, "p50": None,
               "cpu": None},
        "recommended": {"variant": "openvino-int8-t1", "reason": "it is fastest"},
    }  # fmt: skip
    (folder / "bench.json").write_text(json.dumps(document), encoding="utf-8")


def bench_row(runtime: str, precision: str, **changed: Any) -> BenchRow:
    values = {
        "id": f"{runtime}-{precision}-t1", "runtime": runtime, "precision": precision, "effective": precision,
        "threads": 1, "fps": None, "p50_ms": 0.0713, "p90_ms": 0.0801, "p99_ms": None, "ratio": None,
        "accuracy": 0.991, "load_ms": 14.2, "first_ms": 0.41, "rss_mb": 77.0, "size_mb": 0.31, "status": "noisy",
    }  # fmt: skip
    return BenchRow.model_validate({**values, **changed})


def make_run(
    folder: Path,
    labels: tuple[str, ...] = tuple("0123456789"),
    frames: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    share_wrong: float = 0.04,
) -> Run:
    """A complete, plausible run in `folder`; frames uint8 NHWC, truth int64."""
    rng = np.random.default_rng(3)
    n = len(truth) if truth is not None else max(1200, 3 * len(labels))
    truth = np.arange(n, dtype=np.int64) % len(labels) if truth is None else truth
    frames = rng.integers(0, 256, (n, 28, 28, 1), dtype=np.uint8) if frames is None else frames
    parts = {name: folder / name for name in ("data", "train", "export", "quantize", "evaluate", "bundle", "bench")}
    for part in parts.values():
        part.mkdir(parents=True)
    np.save(parts["data"] / "test.frames.npy", frames)
    np.save(parts["data"] / "test.truth.npy", truth)
    predictions = make_predictions(truth, len(labels), share_wrong)
    np.savez(parts["evaluate"] / "predictions.npz", allow_pickle=False, **predictions)
    with (parts["train"] / "curves.csv").open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"])
        for epoch in range(1, 13):
            writer.writerow([epoch, 0.01, 1.1 / epoch, 1 - 0.3 / epoch, 1.0 / epoch + 0.02, 1 - 0.25 / epoch - 0.005])
    right = int((predictions["truth"] == predictions["answer"]).sum())
    accuracy, ci95 = right / n, report_format.wilson(right, n)
    rows = (
        bench_row("onnxruntime", "fp32", status="noisy"),
        bench_row("onnxruntime", "int8", ratio=(1.62, 1.55, 1.7), p50_ms=0.0441, accuracy=0.9908, size_mb=0.11),
        bench_row("openvino", "fp32", ratio=(1.21, 1.16, 1.25), p50_ms=0.0592, fps=15872.0, p99_ms=0.0913),
        bench_row("openvino", "int8", ratio=(2.4137, 2.3311, 2.4905), p50_ms=0.0295, accuracy=0.9905, size_mb=0.11),
    )
    write_bench(parts["bench"], rows, "noisy")
    counts = {"train": 4500, "val": 500, "test": n}
    size = {split: tuple([max(1, count // len(labels))] * len(labels)) for split, count in counts.items()}
    return Run(
        folder=folder,
        data=DataResult(
            folder=parts["data"], name="mnist-5k", task="classify", labels=labels, size_wh=(28, 28), resize=Resize(),
            colour="gray", counts=counts, class_counts=size, digests={}, mean=(0.13,), std=(0.31,),
            dropped={"duplicate of train": 3}, notes=("The test split is that of mnist.",),
        ),
        train=TrainResult(
            folder=parts["train"], task="classify", model=ModelConfig(), labels=labels, in_channels=1, size_wh=(28, 28),
            metric="accuracy", val=0.986, train=0.991, best_epoch=11, epochs=12, parameters=77210, macs=2345678,
            seconds=61.4, cpu_seconds=60.2, precision="bf16-mixed", accelerator="cpu",
            gates=(Gate(name="train.min_accuracy", value=0.986, limit=0.98, passed=True, stop=True,
                        message="Validation accuracy 98.6 % (n = 500), at least 98.0 % wanted."),),
        ),
        export=ExportResult(
            folder=parts["export"], opset=20, size_bytes=312345, parity=(
                ParityRow(name="torch -> onnxruntime", n=256, max_abs=1.7e-5, max_rel=1.1e-6, agreement=1.0,
                          tolerance=1e-4, passed=True),
                ParityRow(name="torch -> openvino", n=256, max_abs=3.3e-5, max_rel=2.2e-6, agreement=1.0,
                          tolerance=1e-4, passed=True),
            ),
        ),
        quantize=QuantizeResult(
            folder=parts["quantize"], metric="accuracy", val_fp32={"onnxruntime": 0.986, "openvino": 0.986},
            val_int8={"onnxruntime": 0.984, "openvino": 0.986}, drop=0.002, max_drop=0.003, passed=True, sqnr_db=31.7,
            agreement={"onnxruntime": 0.998, "openvino": 1.0}, size_bytes=111222,
            fused={"onnxruntime": "6 of 6 convolutions INT8", "openvino": "6 of 6 convolutions INT8"},
            calibration={"n": 256, "digest": "c0ffee", "mean": [0.01], "std": [0.99]},
        ),
        evaluate=EvaluateResult(
            folder=parts["evaluate"], metric="accuracy", int8_drop={"onnxruntime": 0.0004, "openvino": -0.0001},
            recommended="int8", reason="INT8 loses no more than the allowed 0.30 points in either runtime",
            rows=tuple(
                EvaluateRow(runtime=runtime, precision=precision, n=n, metrics={"accuracy": value}, ci95=ci95,
                            agreement=agreement, max_abs_logits=difference)
                for runtime, precision, value, agreement, difference in (
                    ("torch", "fp32", accuracy + 0.001, 1.0, 0.0),
                    ("onnxruntime", "fp32", accuracy + 0.001, 1.0, 2.1e-5),
                    ("openvino", "fp32", accuracy + 0.001, 1.0, 3.9e-5),
                    ("onnxruntime", "int8", accuracy, 0.99996, 0.81),
                    ("openvino", "int8", accuracy + 0.0002, 0.9989, 0.79),
                )
            ),
        ),
        bundle=BundleResult(folder=parts["bundle"], name="digits", manifest_sha256="d1" * 32, size_bytes=1_234_567),
        bench=BenchResult(
            folder=parts["bench"], baseline="onnxruntime-fp32-t1", rows=rows, recommended="openvino-int8-t1",
            reason="OpenVINO INT8 is fastest and within 0.3 points of FP32.", status="noisy",
        ),
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "digits")


class Page(HTMLParser):
    """Tags in balance, the visible text, and everything a browser would fetch or run."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"<{tag} {name}> would run a script"
            if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        """The visible text with plain spaces and minus signs."""
        return " ".join(" ".join(self.text).split()).replace("\u2212", "-")


def test_page_is_balanced_html_that_fetches_and_runs_nothing(run: Run) -> None:
    html, _, _ = run.report()
    page = Page(html)
    assert not page.open
    assert not {"script", "iframe", "object", "embed", "link"} & set(page.tags)
    assert not re.search(r"//[a-z]|@import", html.split("<body>")[0])
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "http:" not in html
    assert "https:" not in html
    assert "default-src 'none'" in html


def test_svg_references_meet_ids_that_exist_once(run: Run) -> None:
    html, _, _ = run.report()
    page = Page(html)
    assert page.tags.count("svg") == 5
    assert len(page.ids) == len(set(page.ids))
    wanted = {reference[1:] for reference in page.references if reference.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", html))
    assert wanted
    assert wanted <= set(page.ids)


def test_charts_take_every_colour_from_the_page(run: Run) -> None:
    """A colour of its own would be unreadable in dark mode; black and white must not slip in either."""
    html, _, _ = run.report()
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert not re.search(r"(?:fill|stroke): ?#[0-9a-f]{3,6}", drawn)
    assert "var(--ink)" in drawn


def test_every_number_is_on_the_page(run: Run) -> None:
    html, markdown, facts = run.report()
    words = Page(html).words
    accuracy = run.evaluate.rows[3].metrics["accuracy"]
    for value in (
        f"{100 * accuracy:.2f} %",  # the lower of the two INT8 runtimes
        "n = 1,200",
        "2.41x [2.33, 2.49]",
        "+0.04 points",
        "-0.01 points",
        "77,210 parameters",
        "2,345,678 MACs",
        "0.11 MB",
        "train.min_accuracy",
        "1.7e-05",
        "6 of 6 convolutions INT8",
        "31.7 dB",
        "c0ffee",
        "60.2 CPU seconds",
        "3 duplicate of train",
        "The test split is that of mnist.",
        "AMD EPYC 9R14",
        "d1" * 32,
        "pipeline all digits/config.toml --run digits",
    ):
        assert value in words, value
    for value in (f"{100 * accuracy:.2f} %", "2.41x", "n = 1,200", "pipeline all digits/config.toml --run digits"):
        assert value in markdown, value
    assert facts["verdict"]["value"] == accuracy
    assert facts["schema"] == "pipeline.report/1"
    assert json.loads(ReportDocument.model_validate(facts).model_dump_json(by_alias=True)) == facts


def test_report_is_the_same_bytes_every_time_and_names_no_machine_path(run: Run) -> None:
    first, second = run.report(), run.report()
    assert first == second
    assert str(run.folder.parent) not in "".join((first[0], first[1], json.dumps(first[2])))


def test_progress_ends_where_it_said(run: Run) -> None:
    steps: list[Step] = []
    out_dir = run.folder / "report"
    out_dir.mkdir()
    report.run(ReportConfig(), *run.results(), out_dir=out_dir, on_step=steps.append)
    assert (steps[-1].done, steps[-1].total) == (3, 3)
    assert [step.done for step in steps] == sorted(step.done for step in steps)


def test_markup_in_labels_titles_and_notes_stays_text(tmp_path: Path) -> None:
    labels = ("<script>alert(1)</script>", "a&b", '"onload="x', "pipe|star*", *"456789")
    run = make_run(tmp_path / "x", labels=labels).but(data={"notes": ("<img src=x onerror=y>",)})
    html, markdown, _ = run.report(ReportConfig(title="<b>T</b>"))
    page = Page(html)
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.words
    assert "<b>T</b>" in page.words
    assert page.tags.count("img") == 24
    assert "<b>" not in markdown
    assert "&lt;b&gt;T&lt;/b&gt;" in markdown


def test_variant_names_are_escaped_in_charts(run: Run) -> None:
    rows = tuple(row.model_copy(update={"id": f"<i>&{row.id}"}) for row in run.bench.rows)
    write_bench(run.bench.folder, rows, "clean")
    html, _, _ = run.but(bench={"rows": rows, "baseline": rows[0].id, "recommended": rows[3].id}).report()
    assert "i" not in Page(html).tags


def test_null_measurements_are_named_with_their_reason_and_never_numbers(run: Run) -> None:
    failed = bench_row(
        "openvino", "int8", status="failed", reason="Could not <compile>", fps=None, p50_ms=None, p90_ms=None,
        accuracy=None, load_ms=None, first_ms=None, rss_mb=None,
    )  # fmt: skip
    rows = (run.bench.rows[0], failed)
    write_bench(run.bench.folder, rows, "contended")
    changed = {"rows": rows, "recommended": "", "reason": "Nothing beat the baseline", "status": "contended"}
    html, markdown, facts = run.but(bench=changed).report()
    words = Page(html).words
    assert "openvino-int8-t1: failed, Could not <compile>" in words
    assert "Speed: not measured (Nothing beat the baseline)" in words
    assert facts["verdict"]["ratio"] is None
    assert any("peak RSS" in reason and "Could not <compile>" in reason for reason in facts["not_measured"])
    assert any("FPS not measured: 2 of 30 slices" in reason for reason in facts["not_measured"])
    assert "The host was busy: trust the ratios." in markdown
    for page in (words, markdown):
        assert "nan" not in page.lower().split()
        assert "None" not in page


def test_every_variant_failed_still_makes_a_report(run: Run) -> None:
    nothing = dict.fromkeys(("fps", "p50_ms", "p90_ms", "p99_ms", "ratio", "accuracy", "load_ms", "first_ms", "rss_mb"))
    rows = tuple(row.model_copy(update={**nothing, "status": "failed", "reason": "no"}) for row in run.bench.rows)
    write_bench(run.bench.folder, rows, "contended")
    html, _, facts = run.but(bench={"rows": rows, "recommended": "", "status": "contended"}).report()
    assert "no variant has both latency and accuracy" in html
    assert "no variant has a ratio to the baseline" in html
    assert len([warning for warning in facts["warnings"] if ": failed, no" in warning]) == 4


def test_missed_gate_turns_the_verdict(run: Run) -> None:
    gate = Gate(name="evaluate.min_accuracy", value=0.95, limit=0.99, passed=False, stop=False, message="Too low.")
    html, markdown, facts = run.but(evaluate={"gates": (gate,)}).report()
    assert not facts["verdict"]["passed"]
    assert facts["verdict"]["sentence"].startswith("Not ready to ship, missed: evaluate.min_accuracy.")
    assert "Not ready to ship" in Page(html).words
    assert "**missed**" in markdown
    assert facts["verdict"]["headline"] == "Not ready to ship"
    assert [gate["name"] for gate in facts["gates"]] == ["train.min_accuracy", "evaluate.min_accuracy"]


def test_the_int8_part_shows_every_candidate_the_sensitivity_and_the_choice(run: Run) -> None:
    both = ("onnxruntime", "openvino")
    row = Candidate(
        name="every operator, minmax",
        metric=dict.fromkeys(both, 0.966),
        ci95=dict.fromkeys(both, (0.946, 0.979)),
        paired=dict.fromkeys(both, (7, 2)),
        p_value=dict.fromkeys(both, 0.18),
        agreement=dict.fromkeys(both, 0.982),
        sqnr_db=34.3,
        fused=dict.fromkeys(both, "6 of 6 convolutions INT8"),
        size_bytes=100_000,
        speed=dict.fromkeys(both, (1.9, 1.8, 2.0)),
        rounds=15,
        verdict="chosen",
        reason="holds its accuracy",
    )
    other = Candidate(name="fine-tuned (QAT)", verdict="not needed", reason="a simpler recipe holds")
    layers = (LayerRow(node="node_linear", operator="Gemm", sqnr_db=37.9),)
    reason = "every operator, minmax: the simplest that holds"
    changed = {"candidates": (row, other), "sensitivity": layers, "reason": reason, "drop": 0.005, "max_drop": 0.003}
    words = Page(run.but(quantize={**changed, "passed": True}).report()[0]).words
    for text in ("E" + reason[1:], row.name, "7 / 2, 0.18", "98.2 %", "34.3", "1.90x [1.80, 2.00]", "node_linear"):
        assert text in words, text
    assert "not needed : a simpler recipe holds" in words
    assert "Beyond the limit by no more than chance." in words
    within = Page(run.but(quantize={**changed, "drop": 0.002}).report()[0]).words
    assert "Within the limit." in within


def test_a_pruned_network_s_channels_are_on_the_page(run: Run) -> None:
    model = run.train.model.model_copy(update={"channels": (16, 12, 32)})
    assert "channels 16 12 32" in Page(run.but(train={"model": model}).report()[0]).words
    assert "channels" not in Page(run.report()[0]).words.split("model resnet")[1][:60]


def test_only_a_run_that_asked_for_an_accuracy_can_be_called_ready(run: Run) -> None:
    html, markdown, facts = run.report()
    assert facts["verdict"]["headline"] == "No gate missed"
    assert "No accuracy was asked for" in facts["warnings"][0]
    assert "Ready to ship" not in html + markdown
    gate = Gate(name="evaluate.min_accuracy", value=0.96, limit=0.95, passed=True, stop=False, message="Enough.")
    _, markdown, facts = run.but(evaluate={"gates": (gate,)}).report()
    assert facts["verdict"]["headline"] == "Ready to ship"
    assert "**Ready to ship.**" in markdown
    assert not any("asked for" in warning for warning in facts["warnings"])


def test_warnings_come_before_every_table(run: Run) -> None:
    counts = dict(run.data.class_counts, train=(4000, *[50] * 9))
    changed = run.but(
        data={"composed": True, "class_counts": counts, "counts": dict(run.data.counts)},
        quantize={"passed": False, "drop": 0.05},
        evaluate={"recommended": "fp32", "reason": "INT8 lost 5 points."},
        train={"best_epoch": 12},
    )
    html, markdown, facts = changed.report()
    for part in (
        "composed by the program",
        "The host was busy: trust the ratios.",
        "Unbalanced classes: 4,000 training items of 0, 50 of 1",
        "INT8 loses 5.00 points",
        "bench recommends openvino-int8-t1",
        "best epoch was the last",
    ):
        assert any(part in warning for warning in facts["warnings"]), part
    assert html.index("composed by the program") < html.index("<table")
    assert markdown.index("composed by the program") < markdown.index("|---")


def judged_on(train: float, val: float, n_val: int) -> Generalization:
    of = [Sampled(share, wilson(share * n, n), n) for share, n in ((train, 4500), (val, n_val))]
    return judge(TrainConfig(), "accuracy", *of, fits_from=0.9)


def test_fit_is_what_the_training_judged(run: Run) -> None:
    judged = judged_on(0.999, 0.95, 500)
    _, _, facts = run.but(train={"generalization": judged}).report()
    assert facts["fit"].startswith(judged.sentence)
    _, _, facts = run.report()
    assert facts["fit"].startswith("Training against validation was not judged.")


def test_reliability_is_of_the_predictions(run: Run) -> None:
    """Mean score and share right by numpy; the chart has a point per bin, and the sentence is in both pages."""
    html, markdown, facts = run.report()
    with np.load(run.evaluate.folder / "predictions.npz") as saved:
        score, right = saved["score"].astype(float), saved["truth"] == saved["answer"]
    found = facts["reliability"]
    assert found["n"] == len(right)
    assert found["excess"] == pytest.approx(score.mean() - right.mean())
    assert sum(part["n"] for part in found["bins"]) == len(right)
    assert "share right over the score" in html
    assert f"{100 * found['ece']:.1f} points" in markdown


def test_test_below_validation_beyond_both_errors_is_said(run: Run) -> None:
    _, _, facts = run.but(train={"generalization": judged_on(0.996, 0.995, 20_000)}).report()
    assert "lower than validation by more than both sampling errors" in facts["fit"]


def test_confusion_agrees_with_sklearn(run: Run) -> None:
    _, _, facts = run.report()
    with np.load(run.evaluate.folder / "predictions.npz") as saved:
        expected = confusion_matrix(saved["truth"], saved["answer"], labels=range(10))
        right = int((saved["truth"] == saved["answer"]).sum())
    assert facts["confusion"]["matrix"] == expected.tolist()
    assert facts["confusion"]["mistakes"] == 1200 - right
    assert [row["right"] for row in facts["classes"]] == expected.diagonal().tolist()
    worst = facts["confusion"]["worst"][0]
    assert worst["n"] == (expected - np.diag(expected.diagonal())).max()
    assert worst["share"] == pytest.approx(worst["n"] / expected[int(worst["truth"])].sum())


def test_many_classes_list_the_worst_pairs_instead_of_a_matrix(tmp_path: Path) -> None:
    html, _, facts = make_run(tmp_path / "x", labels=tuple(f"c{i}" for i in range(300)), share_wrong=0.3).report()
    assert facts["confusion"]["matrix"] is None
    assert len(facts["confusion"]["worst"]) == 20
    assert 'class="matrix"' not in html
    assert len(html) < 400_000
    assert "300 classes: the most frequent mistakes" in Page(html).words


def test_perfect_model_has_no_mistakes_to_show(tmp_path: Path) -> None:
    html, _, facts = make_run(tmp_path / "x", share_wrong=0.0).report()
    assert facts["confusion"]["mistakes"] == 0
    assert facts["verdict"]["value"] == 1.0
    assert "0 mistakes in 1,200 test items" in Page(html).words
    assert Page(html).tags.count("img") == 24


def test_thumbnails_are_the_frames_mistakes_first_the_surest_first(tmp_path: Path) -> None:
    """Colours survive: the BGR frame shows as RGB, pixel for pixel."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (1200, 20, 24, 3), dtype=np.uint8)
    run = make_run(tmp_path / "x", frames=frames)
    with np.load(run.evaluate.folder / "predictions.npz") as saved:
        predictions = {name: saved[name] for name in saved.files}
    mistakes, right = report.thumbnails(run.data, predictions, 24)
    wrong = np.flatnonzero(predictions["truth"] != predictions["answer"])
    surest = wrong[predictions["score"][wrong].argmax()]
    image = Image.open(io.BytesIO(base64.b64decode(mistakes[0].uri.split(",")[1])))
    assert (np.asarray(image) == frames[surest][:, :, ::-1]).all()
    assert mistakes[0].size_wh == image.size == (24, 20)
    scores = [thumb.score for thumb in mistakes]
    assert scores == sorted(scores, reverse=True)
    assert len(mistakes) == 16
    assert len(right) == 8
    assert all(thumb.truth == thumb.answer for thumb in right)


def test_answers_that_are_not_classes_leave_those_parts_out(run: Run) -> None:
    np.savez(run.evaluate.folder / "predictions.npz", boxes=np.zeros((1200, 4)))
    html, _, facts = run.report()
    assert facts["confusion"] is None
    assert "the answers of task classify are not single classes" in Page(html).words


def test_run_without_curves_says_so(run: Run) -> None:
    (run.train.folder / "curves.csv").unlink()
    html, _, _ = run.report()
    assert Page(html).words.count("the training kept no curve of it") == 2


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda run: (run.evaluate.folder / "predictions.npz").unlink(), "predictions.npz: cannot be read"),
        (lambda run: (run.evaluate.folder / "predictions.npz").write_bytes(b"PK"), "predictions.npz: cannot be read"),
        (lambda run: (run.bench.folder / "bench.json").unlink(), "bench.json: cannot be read"),
        (lambda run: (run.bench.folder / "bench.json").write_text('{"schema": "no'), "bench.json: cannot be read"),
    ],
)
def test_missing_or_broken_inputs_are_named(run: Run, broken: Callable[[Run], None], says: str) -> None:
    broken(run)
    with pytest.raises(Error) as raised:
        run.report()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_predictions_of_another_test_split_are_refused(run: Run) -> None:
    with pytest.raises(Error, match="1200 values of truth for 999 test items"):
        run.but(data={"counts": dict(run.data.counts, test=999)}).report()


def test_wilson_against_known_values() -> None:
    """Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3: 81/263, 15/148, 0/20."""
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert report_format.wilson(right, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_percent_says_100_only_for_all_and_0_only_for_none(sample: tuple[int, int]) -> None:
    right, n = sample
    shown = float(report_format.percent(right / n, n).removesuffix(" %"))
    assert (shown == 100) == (right == n)
    assert (shown == 0) == (right == 0)
    assert abs(shown - 100 * right / n) <= (0.1 if n < 1000 else 0.01)


def hide(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """As if the library were not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)


NOT_INSTALLED = r"{}, which is not installed; type: pip install 'train-to-edge\[train\]'"


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_missing_library_is_named_with_what_to_type(run: Run, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    hide(monkeypatch, library)
    with pytest.raises(InputError, match=NOT_INSTALLED.format(library)):
        run.report()


def test_missing_pillow_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "PIL")
    with pytest.raises(InputError, match=NOT_INSTALLED.format("Pillow")):
        report.png_uri(np.zeros((2, 2, 1), np.uint8))


@pytest.mark.parametrize(("difference", "shown"), [(0.0004, "+0.04"), (-0.00001, "+0.00"), (-0.0123, "-1.23")])
def test_points_have_a_sign_and_no_negative_zero(difference: float, shown: str) -> None:
    assert report_format.points(difference) == f"{shown} points"


@given(st.text(max_size=40))
def test_markdown_text_cannot_leave_its_cell(text: str) -> None:
    shown = report.markdown_text(text)
    assert not {"\n", "\r", "<", ">"} & set(shown)
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", shown)
