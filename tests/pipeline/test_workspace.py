"""The run folder: swaps that were cut off, folders that cannot be used, files that are not ours."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_demo.errors import InputError
from pipeline.workspace import StageRecord, digests, intact, opened, read_run, write_atomic

OLD, NEW = "a" * 64, "b" * 64


def committed(folder: Path) -> None:
    """A run folder with `train` finished under key OLD and text `old`."""
    with opened(folder) as space:
        (space.begin("train", OLD, keep=False) / "weights").write_text("old")
        space.commit("train", OLD, 1.0, {"value": 1})


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught, opened(folder):
        pass
    assert caught.value.hint
    return str(caught.value)


def cut_off(folder: Path, at: int) -> None:
    """What is on disk when the process dies at step `at` of committing `train` under key NEW with text `new`."""
    partial, target, old = folder / f".partial-train-{NEW[:12]}", folder / "train", folder / ".old-train"
    partial.mkdir()
    (partial / "weights").write_text("new")
    steps = [
        lambda: (folder / ".stages.json").write_text(
            json.dumps(
                {
                    "train": StageRecord(
                        name="train", key=NEW, status="ran", seconds=1, outputs=digests(partial), result={"value": 2}
                    ).model_dump()
                }
            )
        ),
        lambda: target.rename(old),
        lambda: partial.rename(target),
        (old / "weights").unlink,
    ]
    for step in steps[:at]:
        step()


@pytest.mark.parametrize(
    ("at", "text", "key"), [(0, "old", OLD), (1, "new", NEW), (2, "new", NEW), (3, "new", NEW), (4, "new", NEW)]
)
@pytest.mark.parametrize("resumable", [frozenset(), frozenset({"train"})])
def test_a_commit_cut_off_anywhere_leaves_one_whole_stage(
    tmp_path: Path, at: int, text: str, key: str, resumable: frozenset[str]
) -> None:
    """Before the index is written the old stage is valid, after it the new one; never a mixture, never none."""
    folder = tmp_path / "run"
    committed(folder)
    cut_off(folder, at)
    with opened(folder, resumable) as space:
        assert (folder / "train" / "weights").read_text() == text
        assert space.cached("train", key) is not None
        assert space.cached("train", NEW if key == OLD else OLD) is None
        assert not list(folder.glob(".old-*"))
        if at or not resumable:
            assert not list(folder.glob(".partial-*"))


def test_a_stage_moved_aside_without_a_successor_comes_back(tmp_path: Path) -> None:
    committed(tmp_path / "run")
    (tmp_path / "run" / "train").rename(tmp_path / "run" / ".old-train")
    with opened(tmp_path / "run") as space:
        assert space.cached("train", OLD) is not None


def test_a_half_written_partial_is_never_taken_for_the_stage(tmp_path: Path) -> None:
    """The index names the new key, but its partial is damaged: neither is valid, and nothing is swapped."""
    folder = tmp_path / "run"
    committed(folder)
    cut_off(folder, 1)
    (folder / f".partial-train-{NEW[:12]}" / "weights").write_text("ne")
    with opened(folder) as space:
        assert space.cached("train", NEW) is None
        assert (folder / "train" / "weights").read_text() == "old"


def test_folders_that_cannot_be_used_are_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert refusal(file).startswith(f"{file}: is a file, not a run folder")
    assert refusal(file / "below").startswith(f"{file / 'below'}: cannot be written (")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "data").write_text("precious")
    assert refusal(photos).startswith(f"{photos}: has files, but is not a run folder")
    assert (photos / "data").read_text() == "precious"
    assert sorted(path.name for path in photos.iterdir()) == ["data"]
    assert "cannot be written" in refusal(Path("/proc/no-run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "cannot be written (Permission denied)" in refusal(tmp_path / "run")


def test_an_empty_folder_and_an_existing_run_are_fine(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with opened(tmp_path):
        pass


def test_a_locked_folder_names_the_process(tmp_path: Path) -> None:
    with opened(tmp_path / "run"):
        assert f"process {os.getpid()} works in this run folder" in refusal(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"train": {"name": "train"}}'])
def test_a_broken_index_or_manifest_is_named(tmp_path: Path, text: str) -> None:
    """With what to do about it."""
    committed(tmp_path / "run")
    (tmp_path / "run" / ".stages.json").write_text(text)
    assert refusal(tmp_path / "run").startswith(f"{tmp_path / 'run' / '.stages.json'}: not readable")
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json: not a pipeline\.run/1 file"):
        read_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"no run\.json there; type: pipeline all"):
        read_run(tmp_path)


def test_atomic_writing_never_shows_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full halfway: the old text stays, nothing else does."""
    file = tmp_path / "run.json"
    write_atomic(file, "old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


FILES = st.dictionaries(st.sampled_from(["a", "b/c", "b/d", "e f"]), st.binary(max_size=50), min_size=1)


@settings(max_examples=50)
@given(files=FILES, data=st.data())
def test_one_changed_byte_anywhere_is_found(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: Any
) -> None:
    folder = tmp_path_factory.mktemp("outputs")
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    outputs = digests(folder)
    assert set(outputs) == set(files)
    assert intact(folder, outputs)
    name = data.draw(st.sampled_from(sorted(files)))
    content = files[name]
    at = data.draw(st.integers(0, len(content)))
    changed = content[:at] + (bytes([content[at] ^ 1]) if at < len(content) else b"x") + content[at + 1 :]
    (folder / name).write_bytes(changed)
    assert not intact(folder, outputs)
    (folder / name).unlink()
    assert not intact(folder, outputs)
