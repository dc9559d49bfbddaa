"""Any number of labels a picture: the table, metric against sklearn, loss against torch, and the whole way, small."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, jaccard_score
from typer.testing import CliRunner

from edge_demo.bundle import open_bundle
from edge_demo.errors import InputError
from edge_demo.tasks import TASKS, multilabel
from edge_demo.tasks.multilabel_metric import average_precision, mean_ap
from edge_demo.verify import verify
from pipeline.cli import app
from pipeline.config import load_config
from stages.arrays import load_tags, load_truth
from stages.data import fingerprint, run
from stages.data.check import check
from stages.data.recognize import recognize
from stages.data.show import show
from stages.spec import AugmentConfig, DataConfig, DataResult, TrainConfig
from stages.tasks import TASKS as TRAINING
from stages.train.examples import balanced_weights, check_config

SIDE = 32
NAMES = ("square", "disc", "bar")
COLOURS_BGR = ((40, 40, 230), (40, 230, 40), (230, 40, 40))


def picture(tags: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """A red square, a green disc, a blue bar, or none of them, on noise."""
    rng = np.random.default_rng(seed)
    out = rng.integers(60, 140, (SIDE, SIDE, 3), np.uint8)
    x, y = (int(value) for value in rng.integers(6, SIDE - 12, 2))
    if tags[0]:
        cv2.rectangle(out, (x, y), (x + 7, y + 7), COLOURS_BGR[0], cv2.FILLED)
    if tags[1]:
        cv2.circle(out, (SIDE - x, SIDE - y), 5, COLOURS_BGR[1], cv2.FILLED)
    if tags[2]:
        cv2.line(out, (0, (x + y) % SIDE), (SIDE, (x + y) % SIDE), COLOURS_BGR[2], 3)
    return out


def write_set(root: Path, count: int) -> NDArray[np.uint8]:
    """Pictures in folders, and their labels.csv without splits; the labels (count, 3)."""
    tags = np.random.default_rng(1).integers(0, 2, (count, 3), dtype=np.uint8)
    (root / "photos").mkdir(parents=True)
    rows = ["file,square,disc,bar"]
    for index, one in enumerate(tags):
        assert cv2.imwrite(str(root / "photos" / f"{index}.png"), picture(one, index))
        rows.append(f"photos/{index}.png,{','.join(map(str, one))}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tags


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Six pictures, two of each split."""
    root = tmp_path / "own"
    root.mkdir()
    rows = ["file,cat,dog,split"]
    for index, split in enumerate(("train", "train", "val", "val", "test", "test")):
        assert cv2.imwrite(str(root / f"{index}.png"), picture(np.zeros(3, np.uint8), index))
        rows.append(f"{index}.png,{1 - index % 2},{index % 2},{split}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def config(root: Path, **changes: object) -> DataConfig:
    values = {"name": "labels", "path": str(root), "size_wh": (SIDE, SIDE), "colour": "rgb"} | changes
    return DataConfig.model_validate(values)


def test_rows_become_labels_in_their_splits(own: Path, tmp_path: Path) -> None:
    result = run(config(own), out_dir=tmp_path)
    assert (result.task, result.labels) == ("multilabel", ("cat", "dog"))
    assert result.counts == {"train": 2, "val": 2, "test": 2}
    assert load_tags(result, "train").tolist() == [[1, 0], [0, 1]]
    assert result.class_counts["test"] == (1, 1)
    assert result.dropped == {}
    assert load_truth(result, "val").tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("6.png,1,0,train", "row without its picture (left out)"),
        ("../0.png,1,0,train", "row without its picture (left out)"),
        ("./0.png,0,0,train", "second row of a picture (left out)"),
        ("0.png,1,train", "row with another number of cells than the first (left out)"),
        ("0.png,yes,0,train", "row with a cell that is neither 0 nor 1 (left out)"),
        ("0.png,,0,train", "row with a cell that is neither 0 nor 1 (left out)"),
    ],
)
def test_each_trouble_is_named_and_counted(own: Path, tmp_path: Path, row: str, what: str) -> None:
    with (own / "labels.csv").open("a") as file:
        file.write(f"\n{row}\n")
    assert run(config(own), out_dir=tmp_path).dropped == {what: 1}
    report = check(config(own))
    assert report.left_out == {what: 1}
    assert report.annotations[what] == ("labels.csv, line 9",)
    with pytest.raises(InputError, match=r"data\.strict"):
        run(config(own, strict=True), out_dir=tmp_path)


def test_a_picture_without_a_row_is_not_a_picture_without_labels(own: Path, tmp_path: Path) -> None:
    assert cv2.imwrite(str(own / "new.png"), picture(np.ones(3, np.uint8), 7))
    result = run(config(own), out_dir=tmp_path)
    assert result.dropped == {"picture without a row in labels.csv (left out)": 1}
    assert sum(result.counts.values()) == 6


def test_empty_ones_and_missing_labels_are_told(own: Path) -> None:
    text = (own / "labels.csv").read_text().replace("1.png,0,1,train", "1.png,0,0,train")
    (own / "labels.csv").write_text(text)
    report = check(config(own))
    sentences = " ".join(finding.sentence for finding in report.findings)
    assert "pictures that have each label: cat 1, dog 0; 1 pictures without an object, kept" in sentences
    assert report.left_out == {"class that train does not show": 1}
    assert "train shows no dog: nothing is learned about them." in report.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first column is not 'file'"),
        ("picture,cat\n0.png,1\n", "the first column is not 'file'"),
        ("file\n0.png\n", "no label in the first line"),
        ("file,split\n0.png,train\n", "no label in the first line"),
        ("file,cat,\n0.png,1,0\n", "a label without a name"),
        ("file,cat,cat\n0.png,1,0\n", "two columns are named 'cat'"),
        ("file;cat\n0.png;1\n", "divided by semicolons"),
        ("file,cat,split\n0.png,1,training\n", "line 2: split 'training' is unknown; known: train, val, test"),
        ("file,cat,split\n0.png,1,test\n", "no usable row for train"),
        ("file,cat\n", "no usable row for train"),
        (b"file,k\xe4tzchen\n0.png,1\n", "is no table in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(own: Path, text: str | bytes, message: str) -> None:
    (own / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        run(config(own), out_dir=own)
    assert message in str(caught.value)


def test_spreadsheets_and_other_systems_write_it_in_their_ways(own: Path, tmp_path: Path) -> None:
    """A byte order mark, CRLF, spaces, quotes, backslashes; `split` in any place."""
    (own / "sub").mkdir()
    assert cv2.imwrite(str(own / "sub" / "a, b.png"), picture(np.zeros(3, np.uint8), 9))
    plain = (own / "labels.csv").read_text().splitlines()
    moved = [",".join((cells[0], cells[3], *cells[1:3])) for cells in (line.split(",") for line in plain)]
    text = "\r\n".join([*moved, '"sub\\a, b.png", train, 1 , 1'])
    (own / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    result = run(config(own), out_dir=tmp_path)
    assert result.counts["train"] == 3
    assert load_tags(result, "train").tolist() == [[1, 0], [0, 1], [1, 1]]
    assert result.dropped == {}


def test_the_fingerprint_follows_the_table_and_the_pictures(own: Path) -> None:
    before = fingerprint(config(own))
    text = (own / "labels.csv").read_text()
    (own / "labels.csv").write_text(text.replace("0.png,1,0", "0.png,1,1") + "\n")
    changed = fingerprint(config(own))
    (own / "5.png").unlink()
    assert len({before, changed, fingerprint(config(own))}) == 3


@given(st.data())
def test_average_precision_agrees_with_sklearn(data: st.DataObject) -> None:
    """Few distinct scores, so that many pictures share one."""
    count = data.draw(st.integers(1, 40))
    tags = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    levels = st.lists(st.integers(0, 6), min_size=count, max_size=count)
    scores = np.array(data.draw(levels), dtype=np.float32) / np.float32(6)
    found = average_precision(scores, tags)
    if not tags.any():
        assert found is None
    else:
        assert found == pytest.approx(average_precision_score(tags, scores), abs=1e-9)


def test_score_quality_and_interval() -> None:
    """Mean over the labels that occur, exact answers, and each picture's Jaccard index as sklearn has it."""
    rng = np.random.default_rng(0)
    tags = rng.integers(0, 2, (60, 4), dtype=np.uint8)
    tags[:, 3] = 0
    scores = np.clip(0.5 * tags + rng.uniform(0, 0.7, (60, 4)), 0, 1).astype(np.float32)
    scores[:5], tags[:5] = 0.1, 0  # neither has any: nothing is wrong
    results = multilabel.decode({"scores": scores}, {"threshold": 0.5})
    score = multilabel.score(results, tags.tolist())
    assert score["mean_ap"] == pytest.approx(average_precision_score(tags[:, :3], scores[:, :3], average="macro"))
    assert "ap.3" not in score
    assert score["exact"] == ((scores >= 0.5) == tags).all(axis=1).mean()
    quality = multilabel.correct(results, list(tags))
    jaccard = [jaccard_score(truth, row >= 0.5, zero_division=1.0) for truth, row in zip(tags, scores, strict=True)]
    np.testing.assert_allclose(quality, jaccard)
    low, high = multilabel.interval(results, list(tags))
    assert 0 < low < score["mean_ap"] < high < 1
    assert mean_ap(scores[:5], tags[:5].astype(bool)) == 0.0
    with pytest.raises(ValueError, match="no results"):
        multilabel.score([], [])


def test_what_is_shown_drawn_and_told() -> None:
    (sure, unsure) = multilabel.decode(
        {"scores": np.array([[0.2, 0.9, 0.5], [0.1, 0.4, 0.3]], np.float32)}, {"threshold": 0.5}
    )
    assert multilabel.to_json(sure, NAMES) == {"labels": {"disc": 0.9, "bar": 0.5}}
    assert multilabel.to_json(unsure, NAMES) == {"labels": {}}
    assert not multilabel.same(sure, unsure)
    frame = np.full((240, 320, 3), 90, np.uint8)
    drawn = multilabel.draw(frame, sure, NAMES, {})
    assert (frame == 90).all()
    assert (drawn[:, 160:] == 90).all()  # the list is at the left
    rows = np.flatnonzero((drawn != 90).any(axis=(1, 2)))
    assert len(rows) > 20
    assert (multilabel.draw(frame, unsure, NAMES, {}) == frame).all()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"roi": 0.5}, "decode.roi: unknown parameter for multilabel; known: threshold"),
        ({"threshold": 1.5}, "decode.threshold: 1.5 is not in [0, 1]"),
        ({"threshold": True}, "decode.threshold: True is not in [0, 1]"),
    ],
)
def test_bad_parameters(params: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        multilabel.check_params(params, NAMES)
    assert message in str(caught.value)


def test_the_graph_has_to_have_a_score_for_each_label() -> None:
    outputs = {"scores": ("float32", (-1, 3)), "embedding": ("float32", (-1, 8))}
    assert multilabel.check_outputs(outputs, NAMES) == ""
    assert "4 labels" in multilabel.check_outputs(outputs, (*NAMES, "x"))


def test_loss_is_torchs_binary_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 3), torch.randint(0, 2, (7, 3)).float()
    weights = torch.tensor([1.0, 2.0, 0.5])
    found = TRAINING["multilabel"].loss((logits,), targets, TrainConfig(task="multilabel"), None)
    terms = -(targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits))
    torch.testing.assert_close(found, terms.sum() / 7)
    weighed = TRAINING["multilabel"].loss((logits,), targets, TrainConfig(task="multilabel"), weights)
    torch.testing.assert_close(weighed, (terms * weights).sum() / 7)
    smooth = TRAINING["multilabel"].loss((logits,), targets, TrainConfig(task="multilabel", label_smoothing=0.2), None)
    soft = targets * 0.8 + 0.1
    torch.testing.assert_close(smooth, F.binary_cross_entropy_with_logits(logits, soft, reduction="sum") / 7)


def test_mixed_pictures_have_mixed_labels() -> None:
    frames = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    targets = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    from stages.augment import Draws

    draws = Draws(torch.Generator().manual_seed(0), 4)
    _, mixed = TRAINING["multilabel"].augment(frames, targets, AugmentConfig(mixup=0.4), draws, 2)
    assert torch.equal(mixed[0, 0], mixed[0, 1])  # both labels have the picture's share
    torch.testing.assert_close(mixed[2].sum(), torch.tensor(1.0))


@pytest.fixture
def data(tmp_path: Path) -> DataResult:
    write_set(tmp_path / "set", 60)
    (tmp_path / "data").mkdir()
    return run(config(tmp_path / "set", val_fraction=0.2, test_fraction=0.2), out_dir=tmp_path / "data")


def test_each_picture_stands_for_its_rarest_label(data: DataResult) -> None:
    tags = load_tags(data, "train")
    counts = tags.sum(axis=0)
    for found, row in zip(TRAINING["multilabel"].strata(data, "train"), tags, strict=True):
        has = np.flatnonzero(row)
        assert (found == 3) if not len(has) else (found in has and counts[found] == counts[has].min())


def test_rare_labels_weigh_more(data: DataResult) -> None:
    weights = balanced_weights(data, torch.device("cpu")).numpy()
    counts = load_tags(data, "train").sum(axis=0)
    np.testing.assert_allclose(weights * counts, counts.sum() / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": {"crop": 0.5}}, "train.augment.crop: what is left of a picture may not show its labels"),
        ({"augment": {"cutmix": 1.0}}, "train.augment.cutmix"),
        ({"augment": {"mosaic": 0.5}}, "train.augment.mosaic"),
        ({"model": {"name": "detector"}}, "detector is no network for multilabel; known: perceptron, mlp"),
        ({"task": "classify"}, "train.task: classify, but the data is for multilabel"),
    ],
)
def test_settings_that_do_not_suit_it(data: DataResult, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_config(TrainConfig.model_validate({"task": "multilabel", "batch_size": 8} | changes), data)
    assert message in str(caught.value)


def test_pictures_are_shown_with_their_labels(own: Path, tmp_path: Path) -> None:
    assert show(config(own), tmp_path / "shown.png", split="train", n=4) == 2
    shown = cv2.imread(str(tmp_path / "shown.png"))
    assert shown is not None


def test_from_folder_to_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`init` knows the folder; what it writes runs to a bundle that verifies; sklearn agrees with its number."""
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set", 360)
    assert recognize(tmp_path / "set").task == "multilabel"
    runner = CliRunner()
    assert runner.invoke(app, ["init", "--data", "set", "--out", "own.toml"]).exit_code == 0
    assert load_config(Path("own.toml"), None, []).train.task == "multilabel"
    small = ["data.size_wh=[32,32]", "train.epochs=6", "train.model.width=8"]
    flags = [word for key in small for word in ("--set", key)]
    done = runner.invoke(app, ["all", "own.toml", "--run", "run", *flags])
    assert done.exit_code == 0, done.output
    document = json.loads(Path("run/run.json").read_text())
    results = {stage["name"]: stage["result"] for stage in document["stages"]}
    assert results["evaluate"]["metric"] == "mean_ap"
    assert results["evaluate"]["rows"][0]["metrics"]["mean_ap"] > 0.95
    with np.load("run/evaluate/predictions.npz") as saved:
        wanted = average_precision_score(saved["tags"], saved["tag_scores"], average="macro")
    assert results["evaluate"]["rows"][0]["metrics"]["mean_ap"] == pytest.approx(wanted, abs=0.02)
    bundle = open_bundle(Path("run/bundle"))
    assert bundle.manifest.task == "multilabel"
    assert bundle.manifest.labels == NAMES
    assert verify(Path("run/bundle")).ok
    facts = json.loads(Path("run/report/report.json").read_text())["multilabel"]
    for row, label in zip(facts["classes"], NAMES, strict=True):
        assert row["label"] == label
    html, markdown = (Path(f"run/report/report.{kind}").read_text() for kind in ("html", "md"))
    assert "answered" in html
    assert all(f"| {name} |" in markdown for name in NAMES)
    assert TASKS[bundle.manifest.task].metric == "mean_ap"
