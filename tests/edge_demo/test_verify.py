from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from edge_demo.bundle import open_bundle, pack
from edge_demo.errors import InputError
from edge_demo.manifest import Tolerance
from edge_demo.verify import SWAPPED, first_difference, outside, verify


def relist(folder, change=lambda manifest: None):
    """Bring the manifest's digests up to date after files were changed, then change the manifest itself."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_bytes())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    change(manifest)
    file.write_text(json.dumps(manifest))


def levels(report):
    return [(check.level, check.variant, check.runtime, check.passed) for check in report.checks]


def test_a_good_bundle_verifies_in_both_runtimes(tiny_bundle, tmp_path):
    for path in (tiny_bundle, pack(tiny_bundle, tmp_path / "tiny.edge")):
        report = verify(path)
        assert report.ok, report.failures
        assert levels(report) == [
            ("pixels", "", "", True),
            ("batch", "", "", True),
            *[
                row
                for variant in ("fp32", "int8")
                for row in [
                    ("expected", variant, "", True),
                    *[
                        (level, variant, runtime, True)
                        for runtime in ("onnxruntime", "openvino")
                        for level in ("raw", "decoded")
                    ],
                ]
            ],
        ]


def test_the_report_is_plain_json(tiny_bundle):
    document = json.loads(json.dumps(verify(tiny_bundle, runtimes=["onnxruntime"]).to_json(), allow_nan=False))
    assert document["schema"] == "edge-verify/1"
    assert document["ok"] is True
    assert document["failures"] == []
    assert {check["runtime"] for check in document["checks"]} == {"", "onnxruntime"}


def test_another_picture_fails_at_pixels(tiny_bundle):
    from edge_demo.image import write_png

    (tiny_bundle / "golden/1.png").write_bytes(write_png(np.zeros((25, 20, 3), np.uint8)))
    relist(tiny_bundle)
    report = verify(tiny_bundle)
    assert not report.ok
    assert levels(report)[0] == ("pixels", "", "", False)
    assert "golden/1.png" in report.failures[0]
    assert not any(check.runtime for check in report.checks)


def test_a_picture_with_swapped_channels_is_called_so(tiny_bundle):
    from edge_demo.image import read_frame, write_png

    file = tiny_bundle / "golden/0.png"
    file.write_bytes(write_png(np.ascontiguousarray(read_frame(file)[..., ::-1])))
    relist(tiny_bundle)
    assert SWAPPED in verify(tiny_bundle).failures[0]


def test_another_resize_fails_at_batch(tiny_bundle):
    relist(tiny_bundle, lambda manifest: manifest["input"].update(resize={"mode": "letterbox"}))
    report = verify(tiny_bundle)
    assert levels(report)[:2] == [("pixels", "", "", True), ("batch", "", "", False)]
    assert report.failures[0].startswith("batch: ")


def test_swapped_labels_fail_at_expected(tiny_bundle):
    def swap(manifest):
        manifest["labels"] = ["bee", "ant", "cat", "dog"]

    relist(tiny_bundle, swap)
    report = verify(tiny_bundle)
    assert not report.ok
    assert "fp32 expected: golden/decoded.fp32.json: result[0]" in report.failures[0]
    assert "labels" in report.failures[0]


def test_another_valid_model_fails_at_raw_in_its_variant_only(tiny_bundle, make_tiny_model):
    (tiny_bundle / "model/model.int8.onnx").write_bytes(make_tiny_model(seed=1).onnx())
    relist(tiny_bundle)
    report = verify(tiny_bundle)
    failed = [check for check in report.checks if not check.passed]
    assert [(check.level, check.variant, check.runtime) for check in failed] == [
        ("raw", "int8", "onnxruntime"),
        ("raw", "int8", "openvino"),
    ]
    assert failed[0].max_abs > 1e-4
    assert "allowed" in failed[0].detail


def test_a_model_that_takes_rgb_is_called_so(tiny_bundle, make_tiny_model):
    (tiny_bundle / "model/model.fp32.onnx").write_bytes(make_tiny_model(swapped=True).onnx())
    relist(tiny_bundle)
    report = verify(tiny_bundle)
    assert report.failures == (f"fp32 onnxruntime raw: {SWAPPED}", f"fp32 openvino raw: {SWAPPED}")


def test_a_wide_tolerance_still_fails_at_decoded(make_tiny_bundle, make_tiny_model, tmp_path):
    folder = make_tiny_bundle(tmp_path / "bundle")
    other = make_tiny_model(seed=2)
    (folder / "model/model.fp32.onnx").write_bytes(other.onnx())

    def widen(manifest):
        for tolerance in manifest["variants"][0]["tolerances"]:
            tolerance["atol"] = 1e6

    relist(folder, widen)
    bundle = open_bundle(folder)
    batch = bundle.batch(bundle.frames(bundle.manifest.golden.frames))
    own, golden = other.reference(batch)["scores"], make_tiny_model().reference(batch)["scores"]
    assert (own.argmax(axis=1) != golden.argmax(axis=1)).any()
    report = verify(folder, runtimes=["onnxruntime"])
    assert [(check.level, check.variant) for check in report.checks if not check.passed] == [("decoded", "fp32")]


def test_a_runtime_without_tolerances_fails(tiny_bundle):
    def drop(manifest):
        for variant in manifest["variants"]:
            variant["tolerances"] = [row for row in variant["tolerances"] if row["runtime"] == "onnxruntime"]

    relist(tiny_bundle, drop)
    assert "states no tolerance for openvino" in verify(tiny_bundle).failures[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no npz", "not an npz"), (b"", "not an npz")],
)
def test_damaged_golden_outputs_are_refused(tiny_bundle, content, message):
    (tiny_bundle / "golden/outputs.fp32.npz").write_bytes(content)
    relist(tiny_bundle)
    with pytest.raises(InputError, match=message):
        verify(tiny_bundle)


def test_golden_outputs_of_other_names_or_counts_are_refused(tiny_bundle):
    file = tiny_bundle / "golden/outputs.fp32.npz"
    np.savez(file, scores=np.zeros((3, 4), np.float32))
    relist(tiny_bundle)
    with pytest.raises(InputError, match=r"has \['scores'\], not \['embedding', 'scores'\]"):
        verify(tiny_bundle)
    np.savez(file, scores=np.zeros((2, 4), np.float32), embedding=np.zeros((2, 5), np.float32))
    relist(tiny_bundle)
    with pytest.raises(InputError, match="for 3 frames"):
        verify(tiny_bundle)


def test_pickled_golden_outputs_are_never_unpickled(tiny_bundle):
    np.savez(tiny_bundle / "golden/outputs.fp32.npz", scores=np.array([{}], dtype=object), embedding=np.zeros(3))
    relist(tiny_bundle)
    with pytest.raises(InputError, match="not an npz of arrays"):
        verify(tiny_bundle)


def test_unknown_runtime_is_named(tiny_bundle):
    with pytest.raises(InputError, match="runtime 'tflite' is unknown"):
        verify(tiny_bundle, runtimes=["tflite"])


def variant_of(atol, rtol):
    from edge_demo.manifest import Variant

    tolerance = Tolerance(runtime="openvino", output="y", atol=atol, rtol=rtol)
    return Variant(precision="fp32", file="m", outputs=(), opset=20, tolerances=(tolerance,))


@pytest.mark.parametrize(
    ("got", "holds"),
    [(10.0, True), (10.14, True), (10.16, False), (9.86, True), (9.84, False), (np.nan, False), (np.inf, False)],
)
def test_tolerance_is_atol_plus_rtol_of_the_expected_value(got, holds):
    # 0.05 + 0.01 * 10 = 0.15 either side
    told = outside({"y": np.array([got])}, {"y": np.array([10.0])}, variant_of(0.05, 0.01), "openvino")
    assert (told == "") is holds


def test_other_shapes_are_outside_any_tolerance():
    told = outside({"y": np.zeros((1, 3))}, {"y": np.zeros((1, 4))}, variant_of(9, 9), "openvino")
    assert told == "y: shape [1, 3], expected [1, 4]"


@pytest.mark.parametrize(
    ("got", "want", "place"),
    [
        ({"a": [1.0, 2.0]}, {"a": [1.000001, 2]}, ""),
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.1]}, "result.a[1]"),
        ({"a": 1}, {"b": 1}, "result is"),
        ([1], [1, 2], "result is"),
        ({"label": "ant"}, {"label": "bee"}, "result.label"),
        ([float("nan")], [0.5], "result[0]"),
        (0.0, False, "result is"),
    ],
)
def test_first_difference(got, want, place):
    told = first_difference(got, want)
    assert (told == "") is (place == "")
    assert told.startswith(place)
