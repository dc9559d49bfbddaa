from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_demo.archive import MAX_RATIO
from edge_demo.bundle import canonical_json, open_bundle, pack
from edge_demo.errors import InputError
from edge_demo.manifest import Resize


def edit(folder, change):
    """Change the manifest as someone would who knows its format: digests of all files brought up to date."""
    import hashlib

    file = folder / "manifest.json"
    manifest = json.loads(file.read_bytes())
    for name in manifest["files"]:
        if (folder / name).is_file():
            data = (folder / name).read_bytes()
            manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    change(manifest)
    file.write_text(json.dumps(manifest))
    return folder


def setter(path, value):
    """A change that sets one dotted key; a number is a list index."""

    def change(manifest):
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place = manifest
        for part in parents:
            place = place[part]
        place[last] = value

    return change


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        open_bundle(path)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.hint
    return text


# --- what is right ---------------------------------------------------------------------------------------------------


def test_a_bundle_opens_and_reads_back(tiny_bundle, make_tiny_model):
    bundle = open_bundle(tiny_bundle)
    assert bundle.manifest.labels == ("ant", "bee", "cat", "dog")
    assert bundle.params == {"roi": 1.0}
    assert bundle.model_bytes("int8") == make_tiny_model(0).onnx()
    batch, truths = bundle.eval_sample()
    assert batch.shape == (6, 8, 10, 3)
    assert batch.dtype == np.uint8
    assert truths == [0, 1, 2, 3, 0, 1]


def test_golden_batch_is_resized_as_the_manifest_says(tiny_bundle):
    from edge_demo.image import fit

    bundle = open_bundle(tiny_bundle)
    frames = bundle.frames(bundle.manifest.golden.frames)
    assert [frame.shape for frame in frames] == [(24, 20, 3), (25, 20, 3), (26, 20, 3)]
    np.testing.assert_array_equal(bundle.batch(frames)[1], fit(frames[1], (10, 8), Resize())[0])


def test_pack_gives_the_same_bytes_and_the_same_bundle(tiny_bundle, tmp_path):
    first, second = pack(tiny_bundle, tmp_path / "a.edge"), tmp_path / "b.edge"
    for file in tiny_bundle.rglob("*"):
        os.utime(file, (1e9, 1e9))
    (tiny_bundle / "README.md").chmod(0o600)
    copied = shutil.copytree(tiny_bundle, tmp_path / "copy")
    pack(copied, second)
    assert first.read_bytes() == second.read_bytes()
    from_zip, from_folder = open_bundle(first), open_bundle(tiny_bundle)
    assert from_zip.manifest == from_folder.manifest
    assert from_zip.manifest_sha256 == from_folder.manifest_sha256
    assert from_zip.model_bytes("fp32") == from_folder.model_bytes("fp32")


def test_pack_leaves_nothing_half_written(tiny_bundle, tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        pack(tiny_bundle, tmp_path / "absent" / "a.edge")
    (tiny_bundle / "extra").write_text("x")
    with pytest.raises(InputError, match="extra is not listed"):
        pack(tiny_bundle, tmp_path / "a.edge")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_a_deflated_zip_opens_too(tiny_bundle, tmp_path):
    file = tmp_path / "deflated.edge"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in tiny_bundle.rglob("*"):
            if path.is_file():
                archive.write(path, path.relative_to(tiny_bundle).as_posix())
    assert open_bundle(file).manifest.name == "tiny"


def test_canonical_json_is_sorted_and_finite():
    assert canonical_json({"b": 1, "a": "ä"}) == '{\n "a": "ä",\n "b": 1\n}\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_a_file_changed_after_opening_is_not_given_out(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    file = tiny_bundle / "model/model.fp32.onnx"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"model\.fp32\.onnx was changed"):
        bundle.model_bytes("fp32")


def test_what_the_bundle_does_not_have_is_named(tiny_bundle, make_tiny_bundle, make_tiny_model, tmp_path):
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(InputError, match="secret is not listed"):
        bundle.read("secret")
    with pytest.raises(InputError, match="no variant 'bf16'; it has: fp32, int8"):
        bundle.model_bytes("bf16")


# --- files -----------------------------------------------------------------------------------------------------------


def test_one_byte_changed_in_any_file_is_refused(tiny_bundle):
    names = [path for path in tiny_bundle.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert len(names) > 10
    for path in names:
        original = path.read_bytes()
        changed = bytearray(original)
        changed[len(changed) // 2] ^= 0x10
        path.write_bytes(bytes(changed))
        assert path.relative_to(tiny_bundle).as_posix() in refused(tiny_bundle, "was changed")
        path.write_bytes(original)
    open_bundle(tiny_bundle)


def test_added_missing_and_shortened_files_are_refused(tiny_bundle):
    (tiny_bundle / "golden/extra.png").write_bytes(b"x")
    refused(tiny_bundle, r"golden/extra\.png is not listed")
    (tiny_bundle / "golden/extra.png").unlink()
    moved = tiny_bundle / "golden/0.png"
    content = moved.read_bytes()
    moved.unlink()
    refused(tiny_bundle, r"golden/0\.png is missing")
    moved.write_bytes(content[:-1])
    refused(tiny_bundle, r"golden/0\.png has \d+ bytes, the manifest says \d+")


def test_a_signature_nobody_checks_is_refused(tiny_bundle):
    (tiny_bundle / "manifest.sig").write_bytes(bytes(64))
    refused(tiny_bundle, "signed .* cannot check")


def test_links_and_special_files_are_refused(tiny_bundle, tmp_path):
    readme = tiny_bundle / "README.md"
    outside = tmp_path / "outside.md"
    readme.rename(outside)
    readme.symlink_to(outside)
    refused(tiny_bundle, r"README\.md: a symlink")
    readme.unlink()
    outside.rename(readme)
    (tiny_bundle / "linked").symlink_to(tiny_bundle / "golden", target_is_directory=True)
    refused(tiny_bundle, "linked: a symlink")
    (tiny_bundle / "linked").unlink()
    os.mkfifo(tiny_bundle / "pipe")
    refused(tiny_bundle, "pipe: a special file")


def test_names_that_differ_only_in_case_are_refused(tiny_bundle):
    (tiny_bundle / "readme.md").write_text("x")
    if (tiny_bundle / "README.md").read_text() == "x":
        pytest.skip("this file system does not tell case apart")
    refused(tiny_bundle, "differ only in case")


def test_no_bundle_at_all(tmp_path, tiny_bundle):
    refused(tmp_path / "absent", "absent: no such bundle")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"no manifest\.json in it")
    (tmp_path / "text.edge").write_text("not a zip")
    refused(tmp_path / "text.edge", "not a zip file")
    assert "did you mean" in refused(tiny_bundle.parent, r"no manifest\.json")


# --- zip -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tiny_bundle, tmp_path):
    return pack(tiny_bundle, tmp_path / "tiny.edge")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_zip_is_refused(packed, share):
    data = packed.read_bytes()
    packed.write_bytes(data[: int(len(data) * share)])
    refused(packed, "not a zip file, or a truncated one")


def append(file, entry, content=b"x", **options):
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(entry, content, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil", "reaches outside the bundle"),
        ("golden/../../evil", "reaches outside the bundle"),
        ("/etc/evil", "absolute path"),
        ("C:/evil", "absolute path"),
        ("..\\evil", "absolute path"),
        ("golden//0.png", "no plain file name"),
        ("./README.md", "no plain file name"),
        ("new\nline", "no plain file name"),
        ("README.MD", "differ only in case"),
        ("folder/", "no regular file"),
        ("extra", "extra is not listed"),
    ],
)
def test_zip_entry_names(packed, name, message):
    append(packed, zipfile.ZipInfo(name))
    refused(packed, message)


def test_zip_entry_twice(packed):
    with pytest.warns(UserWarning, match="Duplicate name"):
        append(packed, zipfile.ZipInfo("README.md"))
    refused(packed, r"'README\.md' is there twice")


def test_zip_symlink(packed):
    entry = zipfile.ZipInfo("link")
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    append(packed, entry, b"/etc/passwd")
    refused(packed, "link is a symlink")


def test_zip_device(packed):
    entry = zipfile.ZipInfo("device")
    entry.create_system, entry.external_attr = 3, (stat.S_IFCHR | 0o777) << 16
    append(packed, entry)
    refused(packed, "device is no regular file")


def test_zip_bomb(packed):
    append(packed, zipfile.ZipInfo("zeros"), bytes(20_000 * MAX_RATIO), compress_type=zipfile.ZIP_DEFLATED)
    refused(packed, "zeros is compressed like a zip bomb")


def test_too_many_and_too_large(packed, monkeypatch):
    monkeypatch.setattr("edge_demo.archive.MAX_ENTRIES", 5)
    refused(packed, "entries, more than the 5")
    monkeypatch.setattr("edge_demo.archive.MAX_ENTRIES", 5000)
    monkeypatch.setattr("edge_demo.archive.MAX_BYTES", 1000)
    refused(packed, "bytes when unpacked, more than the 1000")


@pytest.fixture(scope="module")
def packed_once(make_tiny_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flip")
    return pack(make_tiny_bundle(folder / "bundle", golden=1, sample=1), folder / "tiny.edge")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_changed_in_a_zip_is_refused_or_changes_no_content(packed_once, tmp_path, data):
    original = packed_once.read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[at] ^= data.draw(st.integers(1, 255))
    file = tmp_path / "changed.edge"
    file.write_bytes(bytes(changed))
    try:
        opened = open_bundle(file)
    except InputError:
        return
    reference = open_bundle(packed_once)
    assert opened.manifest_sha256 == reference.manifest_sha256
    assert all(opened.read(name) == reference.read(name) for name in reference.manifest.files)


# --- manifest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", "edge-bundle/2", "schema 'edge-bundle/2', this program reads 'edge-bundle/1'; update this program"),
        ("schema", "something", "schema 'something'"),
        ("min_runner", "99.0.0", r"needs version 99\.0\.0 of this program"),
        ("min_runner", "soon", "'soon' is no version"),
        ("surprise", 1, "surprise: Extra inputs"),
        ("input.size_wh.0", 0, r"input\.size_wh\.0: "),
        ("input.resize", {"mode": "stretch", "interpolation": "cubic"}, r"input\.resize\.interpolation: "),
        ("task", "dance", "task 'dance' is unknown; this program knows: "),
        ("decode", {"roi": 2}, r"decode\.roi: 2 is not in \(0, 1\]"),
        ("decode", {"treshold": 1}, r"decode\.treshold: unknown parameter"),
        ("labels", ["ant", "bee", "cat"], r"3 labels for scores of shape \[-1, 4\]"),
        ("labels", ["ant", "bee", "cat", "ant"], "labels: empty, or one is there twice"),
        ("recommended", "int4", "recommended: "),
        ("input.mean", [0.5], "rgb needs 3 mean and positive std values"),
        ("input.std", [1, 1, 0], "rgb needs 3 mean and positive std values"),
        ("golden.frames", [], "golden: no frames"),
        ("golden.frames.0", "golden/9.png", r"golden\.frames: golden/9\.png is not among the bundle's files"),
        ("golden.decoded", {}, "golden: not the expected results of every variant"),
        ("eval.truth", "eval/absent.json", r"eval\.truth: eval/absent\.json is not among"),
        ("eval.of", 2, "eval: no frames, or more than the test split has"),
        ("eval.truth", "README.md", r"README\.md: not valid JSON"),
        ("variants.0.file", "README.md", r"README\.md: not an ONNX model"),
        ("variants.0.opset", 13, "its opset is 20, the manifest says 13"),
        ("variants.0.outputs.0.shape", [-1, 9], r"its outputs are scores float32 \[-1, 4\], .* manifest says"),
        ("input.size_wh", [12, 8], r"its inputs are frames uint8 \[-1, 8, 10, 3\], the manifest says"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused(tiny_bundle, path, value, message):
    refused(edit(tiny_bundle, setter(path, value)), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "schema None"),
        ('{"schema": "edge-bundle/1", "schema": "edge-bundle/1"}', "key 'schema' is there twice"),
        ('{"schema": NaN}', "NaN is not JSON"),
        ('{"schema": "edge-bundle/1"}', "min_runner: Field required"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tiny_bundle, text, message):
    (tiny_bundle / "manifest.json").write_text(text)
    refused(tiny_bundle, message)


def test_a_variant_twice_is_refused(tiny_bundle):
    refused(edit(tiny_bundle, lambda manifest: manifest["variants"].append(manifest["variants"][0])), "variants: ")


# --- models ----------------------------------------------------------------------------------------------------------

CONTRACT = {
    "task": "classify",
    "labels": json.dumps(["ant", "bee", "cat", "dog"]),
    "input": json.dumps(
        {
            "name": "frames",
            "size_wh": [10, 8],
            "resize": {"mode": "stretch", "interpolation": "area", "pad_value": 0},
            "colour": "rgb",
            "mean": [0.0] * 3,
            "std": [1.0] * 3,
        }
    ),
}


def test_metadata_of_the_model_must_agree_with_the_manifest(make_tiny_bundle, tmp_path):
    folder = make_tiny_bundle(tmp_path / "bundle", metadata=CONTRACT)
    open_bundle(folder)
    original = (folder / "manifest.json").read_bytes()
    for path, value, message in (
        ("labels", ["bee", "ant", "cat", "dog"], "its metadata 'labels' is"),
        ("input.mean", [0.5, 0.0, 0.0], "its metadata 'input' is"),
    ):
        refused(edit(folder, setter(path, value)), message)
        (folder / "manifest.json").write_bytes(original)


def test_weights_outside_the_file_are_refused(tiny_bundle, make_tiny_model):
    onnx = pytest.importorskip("onnx")
    file = tiny_bundle / "model/model.fp32.onnx"
    proto = make_tiny_model().proto()
    onnx.save(proto, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tiny_bundle / "model/weights.bin").unlink()
    refused(edit(tiny_bundle, lambda manifest: None), r"keeps weights outside itself, in weights\.bin")


def test_a_model_of_other_outputs_is_refused(tiny_bundle, make_tiny_model):
    (tiny_bundle / "model/model.int8.onnx").write_bytes(make_tiny_model(labels=7).onnx())
    refused(edit(tiny_bundle, lambda manifest: None), r"model\.int8\.onnx: its outputs are")


def test_a_truncated_model_is_refused(tiny_bundle):
    file = tiny_bundle / "model/model.int8.onnx"
    file.write_bytes(file.read_bytes()[:-100])
    refused(edit(tiny_bundle, lambda manifest: None), r"model\.int8\.onnx: not an ONNX model")
