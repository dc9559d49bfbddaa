"""Config: precedence, strictness, messages, and the way back to TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_demo.errors import InputError
from pipeline.config import PipelineConfig, check, dump_toml, load_config, parse_set, presets


def write(tmp_path: Path, text: str, name: str = "own.toml") -> Path:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return file


def refusal(**arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_config(**arguments)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_later_sources_win(tmp_path: Path) -> None:
    """Preset < TOML < --set < flag, each checked against the one below."""
    assert load_config().train.epochs == load_config(preset="digits").train.epochs
    file = write(tmp_path, 'preset = "keras-convnet"\n[train]\nepochs = 101\nlr = 0.5\n')
    from_file = load_config(file)
    assert (from_file.train.epochs, from_file.train.lr, from_file.train.model.name) == (101, 0.5, "convnet")
    from_set = load_config(file, sets=["train.epochs=102"])
    assert (from_set.train.epochs, from_set.train.lr) == (102, 0.5)
    from_flag = load_config(file, sets=["train.epochs=102"], flags={"train.epochs": 103})
    assert from_flag.train.epochs == 103
    assert load_config(sets=["train.epochs=1", "train.epochs=2"]).train.epochs == 2


def test_the_preset_option_wins_over_the_files_own(tmp_path: Path) -> None:
    """And without either, a file starts from the sections' defaults, not from the default preset."""
    file = write(tmp_path, 'preset = "keras-convnet"\n')
    assert load_config(file, preset="fashion").data.name == "fashion-mnist"
    plain = load_config(write(tmp_path, "[train]\nepochs = 3\n", "my run.toml"))
    assert plain == PipelineConfig.model_validate({"name": "my-run", "train": {"epochs": 3}})


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid_named_and_described(name: str) -> None:
    assert load_config(preset=name).name == name
    assert len(presets()[name]) > 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.epoch=3", "train.epoch: unknown key (in --set train.epoch=3); did you mean 'epochs'?"),
        ("epochs=3", "epochs: unknown key (in --set epochs=3); did you mean 'train.epochs'?"),
        ("train.model.widht=3", "train.model.widht: unknown key (in --set train.model.widht=3); did you mean 'width'?"),
        ("xyzzy=3", "xyzzy: unknown key (in --set xyzzy=3); known: name, data, train"),
        ("train.epochs=2.5", "train.epochs: must be a valid integer"),
        ("train.epochs='2'", 'train.epochs: must be a valid integer; got "2"'),
        ("train.epochs=true", "train.epochs: must be a valid integer; got true"),
        ("train.epochs=0", "train.epochs: must be greater than 0; got 0"),
        ("train.lr=nan", "train.lr: must be a finite number; got nan"),
        ("train.lr=inf", "train.lr: must be a finite number; got inf"),
        ("train.lr=1979-05-27", "train.lr: must be a string, number, boolean or list; got 1979-05-27"),
        ("train.optimizer=adm", "train.optimizer: must be 'sgd', 'adam', 'adamw'"),
        ("train=3", "train: must be a section; got 3"),
        ("name=a/b", "name: must be letters, digits, '.', '_' or '-'"),
        ("name=''", "name: must be letters, digits, '.', '_' or '-'"),
        ("data.size_wh=[28,0]", "data.size_wh: must be greater than 0; got 0"),
        ("data.size_wh=[28]", "data.size_wh: "),
        ("quantize.required=1", "quantize.required: must be a valid boolean; got 1"),
        ("epochs", "--set epochs: expected section.key=value"),
        ("=3", "--set =3: expected section.key=value"),
        ("train..lr=3", "--set train..lr=3: expected section.key=value"),
    ],
)
def test_a_wrong_set_is_one_line_with_the_dotted_key(text: str, said: str) -> None:
    assert refusal(sets=[text]).startswith(said)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    """The file, and what to type."""
    file = write(tmp_path, "[train]\nepoch = 3\nbatchsize = 1\n")
    message = refusal(file=file)
    assert message == f"train.epoch: unknown key (in {file}) (and 1 more); did you mean 'epochs'?"
    missing = refusal(file=tmp_path / "no.toml")
    assert missing.startswith(f"{tmp_path / 'no.toml'}: no such file")
    assert "digits" in missing
    assert "not a valid TOML" in refusal(file=write(tmp_path, "[train\n", "bad.toml"))
    assert "line 1" in refusal(file=tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as a TOML" in refusal(file=tmp_path / "binary.toml")
    assert "cannot be read as a TOML" in refusal(file=tmp_path)


def test_an_unknown_preset_lists_those_there_are(tmp_path: Path) -> None:
    message = refusal(preset="digit")
    assert message.startswith("--preset: unknown preset 'digit'; did you mean 'digits'?")
    assert all(name in message for name in presets())
    file = write(tmp_path, "preset = 7\n")
    assert refusal(file=file).startswith(f"{file}: unknown preset 7")


@pytest.mark.parametrize(
    ("sets", "key"),
    [
        (["data.path=photos"], "data.path: has no effect"),
        (["data.name=folder"], "data.path: is empty"),
        (["data.root=/x", "data.test_set=own"], "data.root: has no effect"),
        (["data.name=mnist", "data.test_set=own", "data.test_fraction=0.3"], "data.test_fraction: has no effect"),
        (["train.momentum=0.5", "train.optimizer=adam"], "train.momentum: has no effect"),
        (["train.model.name=convnet", "train.model.width=64"], "train.model.width: has no effect"),
        (["train.teacher_weight=0.5"], "train.teacher_weight: has no effect without train.teacher"),
        (["train.teacher_temperature=2.0"], "train.teacher_temperature: has no effect without train.teacher"),
        (["train.prune_share=0.75", "train.teacher=runs/x"], "train.prune_share: has no effect without train.prune"),
    ],
)
def test_a_knob_without_effect_is_an_error(sets: list[str], key: str) -> None:
    message = refusal(sets=sets)
    assert message.startswith(key)
    assert "; " in message, "it says what to do"


def test_a_knob_with_effect_is_none() -> None:
    config = load_config(sets=["data.name=folder", "data.path=photos", "data.test_set=own"])
    assert config.data.path == "photos"
    assert load_config(sets=["train.momentum=0.5", "train.optimizer=sgd"]).train.momentum == 0.5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=1.5", 1.5),
        ("a=true", True),
        ("a=[1, 2]", [1, 2]),
        ("a='x'", "x"),
        ("a=bare word", "bare word"),
        ("a=", ""),
        ("a=b=c", "b=c"),
        ("a=1\nb=2", "1\nb=2"),
        ("a={x = 1}", {"x": 1}),
    ],
)
def test_a_sets_value_is_toml_or_a_string(text: str, value: object) -> None:
    parsed = parse_set(text)
    assert parsed == {"a": value}
    assert type(parsed["a"]) is type(value)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LEAVES = st.one_of(TEXT, st.integers(-(2**62), 2**62), st.booleans(), st.floats(allow_nan=False, allow_infinity=False))
DECODE = st.dictionaries(
    TEXT,
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)),
    max_size=4,
)


@given(
    decode=DECODE,
    title=TEXT,
    epochs=st.integers(1, 10**6),
    lr=st.floats(1e-300, 1e300, allow_infinity=False),
    threads=st.lists(st.integers(1, 99), max_size=3),
    required=st.booleans(),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
)
def test_toml_out_and_in_gives_an_equal_config(
    decode: dict[str, Any], title: str, epochs: int, lr: float, threads: list[int], required: bool, name: str
) -> None:
    """Every string, number and nesting survives; tomllib is the independent reader."""
    tree = {
        "name": name,
        "train": {"epochs": epochs, "lr": lr},
        "quantize": {"required": required},
        "bundle": {"decode": decode},
        "bench": {"threads": threads},
        "report": {"title": title},
    }
    config = check(tree, {})
    again = check(tomllib.loads(dump_toml(config)), {})
    assert again == config
    assert again.bundle.decode == decode


def test_the_dump_holds_every_key_and_loads_as_a_file(tmp_path: Path) -> None:
    config = load_config(preset="digits", sets=["train.seed=7"])
    file = write(tmp_path, dump_toml(config), "config.toml")
    assert load_config(file) == config
    assert tomllib.loads(file.read_text()).keys() == PipelineConfig.model_fields.keys()
