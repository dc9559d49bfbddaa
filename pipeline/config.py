"""PipelineConfig: the stages' configs side by side, read from preset < TOML < --set < flag, and written back."""

from __future__ import annotations

import copy
import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_demo.errors import InputError
from stages.spec import (
    PATH_SETS,
    BenchConfig,
    BundleConfig,
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    QuantizeConfig,
    ReportConfig,
    TrainConfig,
)

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "digits"
WORDS = {
    "model_type": "must be a section",
    "string_pattern_mismatch": "must be letters, digits, '.', '_' or '-', beginning with a letter or digit",
}
"""pydantic's error types whose own words say too little."""
SOURCES = {"teacher_weight": "teacher", "teacher_temperature": "teacher", "prune_share": "prune"}
"""Keys of `train` -> the one without which they have no effect."""
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

Tree = dict[str, Any]
Origins = dict[str, str]
"""Dotted key -> where its value came from, for error messages."""
Model = TypeVar("Model", bound=BaseModel)


class PipelineConfig(BaseModel):
    """One run: its name, and one section per stage."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    """Names the default run folder and the bundle."""
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    export: ExportConfig = ExportConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    bundle: BundleConfig = BundleConfig()
    bench: BenchConfig = BenchConfig()
    report: ReportConfig = ReportConfig()


def load_config(
    file: Path | None = None,
    preset: str | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> PipelineConfig:
    """Read a run's config; later sources win: preset < TOML < --set < flag.

    A TOML may name its base with `preset = "digits"`; one that does not starts from each section's defaults. Without a
    TOML and a preset the base is the preset `digits`.

    Args:
        file: A TOML with the keys of `PipelineConfig`.
        preset: Name of a file in `pipeline/presets`; wins over the TOML's own `preset`.
        sets: `a.b=value`, the value in TOML spelling; a bare word is a string.
        flags: Dotted key -> value, from the command's own options.

    Raises:
        InputError: a file, key or value is wrong; the message names it, and the closest right one.
    """
    tree, origins = merged(file, preset, sets, flags)
    if "sweep" in tree:
        problem = "is read by `pipeline sweep` only"
        raise InputError(_placed("sweep", problem, origins), "drop the section, or type: pipeline sweep CONFIG.toml")
    return check(tree, origins)


def merged(
    file: Path | None, preset: str | None, sets: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> tuple[Tree, Origins]:
    """All sources of a config as one tree, nothing validated yet, and where each value came from; see `load_config`.

    Raises:
        InputError: a file or preset is missing or no TOML, or a `--set` is none.
    """
    tree: Tree = {}
    origins: Origins = {}
    written = read_toml(file) if file else {}
    base = preset or written.pop("preset", None) or (None if file else DEFAULT_PRESET)
    written.pop("preset", None)
    if base is not None:
        _merge(
            tree,
            read_toml(_preset_file(base, f"{file}" if file and not preset else "--preset")),
            origins,
            f"preset {base}",
        )
    if file:
        _merge(tree, {"name": _name_of(file)} | written, origins, str(file))
    for text in sets:
        _merge(tree, parse_set(text), origins, f"--set {text}")
    for dotted, value in (flags or {}).items():
        _merge(tree, _nested(dotted.split("."), value), origins, "the command line")
    return tree, origins


def with_value(tree: Tree, origins: Origins, dotted: str, value: Any, origin: str) -> tuple[Tree, Origins]:
    """A merged tree with one more value; the given one stays as it is."""
    tree, origins = copy.deepcopy(tree), dict(origins)
    _merge(tree, _nested(dotted.split("."), value), origins, origin)
    return tree, origins


def check(tree: Tree, origins: Origins) -> PipelineConfig:
    """Validate a merged tree without converting anything: "5" is no integer, 1 is no boolean.

    Raises:
        InputError: unknown key, wrong value, or a knob that has no effect in this combination.
    """
    config = validated(PipelineConfig, tree, origins)
    for key, problem, hint in _without_effect(config):
        raise InputError(_placed(key, problem, origins), hint)
    return config


def validated(model: type[Model], tree: Tree, origins: Origins) -> Model:
    """A merged tree as a model, without the question whether each knob has an effect.

    Raises:
        InputError: unknown key, or wrong value.
    """
    _check_plain(tree, "", origins)
    try:
        return model.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise _for_people(error, origins, model) from None


def presets() -> dict[str, str]:
    """Name -> first comment line of every preset."""
    files = sorted(PRESETS.glob("*.toml"))
    return {file.stem: file.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for file in files}


def read_toml(file: Path) -> Tree:
    """A TOML file as nested dicts.

    Raises:
        InputError: not there, not readable, not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file", f"give a TOML, or --preset {' | '.join(presets())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file}: cannot be read as a TOML ({error})", "give a text file with the run's keys"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file}: not a valid TOML: {error}", "see https://toml.io") from None


def parse_set(text: str) -> Tree:
    """`train.lr=0.1` -> `{"train": {"lr": 0.1}}`; a value that is no TOML is a string.

    Raises:
        InputError: no `=`, or an empty key.
    """
    dotted, equals, value = text.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise InputError(f"--set {text}: expected section.key=value", "type e.g. --set train.epochs=3")
    return _nested(keys, _toml_value(value.strip()))


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # A newline in the text could have brought further keys.
    return parsed["value"] if set(parsed) == {"value"} else text


def _nested(keys: Sequence[str], value: Any) -> Tree:
    for key in reversed(keys):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def _merge(into: Tree, more: Tree, origins: Origins, origin: str, prefix: str = "") -> None:
    """Tables are merged, everything else replaced."""
    for key, value in more.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(into.get(key, {}), dict):
            origins[dotted] = origin
            _merge(into.setdefault(key, {}), value, origins, origin, f"{dotted}.")
        else:
            into[key] = value
            origins[dotted] = origin


def _preset_file(name: Any, where: str) -> Path:
    known = presets()
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        asked = f"did you mean '{close[0]}'? " if close else ""
        raise InputError(f"{where}: unknown preset {name!r}", f"{asked}presets: {', '.join(known)}")
    return PRESETS / f"{name}.toml"


def _name_of(file: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._") or "run"


# --- what is wrong, in one line --------------------------------------------------------------------------------------


def _placed(key: str, problem: str, origins: Origins) -> str:
    origin = next((origins[part] for part in _parents(key) if part in origins), "")
    return f"{key}: {problem}" + (f" (in {origin})" if origin else "")


def _parents(key: str) -> Iterator[str]:
    while key:
        yield key
        key = key.rpartition(".")[0]


def _check_plain(value: Any, dotted: str, origins: Origins) -> None:
    """Refuse what TOML has and a config has not: dates, infinity, NaN."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_plain(inner, f"{dotted}.{key}" if dotted else key, origins)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner, dotted, origins)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(_placed(dotted, f"must be a finite number; got {value}", origins))
    elif not isinstance(value, str | int | float | bool):
        raise InputError(_placed(dotted, f"must be a string, number, boolean or list; got {value}", origins))


def _for_people(error: ValidationError, origins: Origins, model: type[BaseModel]) -> InputError:
    first, *others = sorted(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return InputError(_placed(key, "unknown key", origins) + more, _suggest(key, model))
    if first["type"] == "missing":
        return InputError(f"{key}: is missing{more}", f'write {key} = "..." at the top of the TOML')
    wanted = WORDS.get(first["type"]) or first["msg"].replace("Input should be", "must be", 1)
    wanted = wanted[0].lower() + wanted[1:]
    got = f"; got {json.dumps(first['input'], ensure_ascii=False)}"
    return InputError(_placed(key, wanted + got, origins) + more)


def _suggest(key: str, model: type[BaseModel]) -> str:
    """The closest known key: a sibling if one is close, else the same last word elsewhere."""
    section, _, leaf = key.rpartition(".")
    known = list(_known_keys(model))
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    if close := difflib.get_close_matches(leaf, siblings, 1):
        return f"did you mean '{close[0]}'?"
    if close := [name for name in known if name.rpartition(".")[2] == leaf] or difflib.get_close_matches(key, known, 1):
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(siblings)}" if siblings else ""


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")


def _without_effect(config: PipelineConfig) -> Iterator[tuple[str, str, str]]:
    """(key, problem, hint) of each knob that was turned although nothing reads it in this combination."""
    data, train, default = config.data, config.train, TrainConfig()
    if data.name in PATH_SETS and not data.path:
        yield "data.path", f'is empty, and data.name is "{data.name}"', "type: --set data.path=FOLDER"
    if data.name not in PATH_SETS and data.path:
        yield "data.path", f'has no effect with data.name = "{data.name}"', 'write data.name = "folder", or drop it'
    if data.strict and data.name not in PATH_SETS[1:]:
        yield "data.strict", f'has no effect with data.name = "{data.name}"', "drop it"
    if data.scenes != DataConfig().scenes and not data.name.startswith("scenes-"):
        yield "data.scenes", f'has no effect with data.name = "{data.name}"', "drop it"
    if data.root and data.name in ("mnist-5k", *PATH_SETS) and data.test_set == "own":
        yield "data.root", f'has no effect: data.name = "{data.name}" is not read from there', "drop it"
    if data.test_fraction != DataConfig().test_fraction and data.name in ("mnist", "fashion-mnist"):
        yield "data.test_fraction", f"has no effect: {data.name} brings its own test split", "drop it"
    yield from _without_effect_on_train(train, default)


def _without_effect_on_train(train: TrainConfig, default: TrainConfig) -> Iterator[tuple[str, str, str]]:
    """The same, of the section `train`."""
    if train.momentum != default.momentum and train.optimizer not in ("sgd", "rmsprop", "muon"):
        yield "train.momentum", f'has no effect with train.optimizer = "{train.optimizer}"', "drop it, or use sgd"
    for knob, source in SOURCES.items():
        if not getattr(train, source) and getattr(train, knob) != getattr(default, knob):
            yield f"train.{knob}", f"has no effect without train.{source}", f"set train.{source} to a run folder"
    for dial in ("depth", "width"):
        if train.model.name == "convnet" and getattr(train.model, dial) != getattr(default.model, dial):
            yield f"train.model.{dial}", 'has no effect with train.model.name = "convnet"', "drop it, or use resnet"


# --- TOML out --------------------------------------------------------------------------------------------------------


def dump_toml(config: PipelineConfig) -> str:
    """The whole effective config as TOML; `load_config` on it gives an equal config."""
    return "\n".join(_table(config.model_dump(mode="json"), ())).lstrip("\n") + "\n"


def _table(tree: Tree, path: tuple[str, ...]) -> Iterator[str]:
    """Plain values first, then sub-tables: TOML puts every key under the last header."""
    plain = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    if path and (plain or not tree):
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {_value(value)}"
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _table(value, (*path, key))


def _key(text: str) -> str:
    return text if BARE_KEY.fullmatch(text) else _string(text)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    # repr, not str of numpy or Decimal: the shortest text that reads back as the same double.
    return repr(value)


def _string(text: str) -> str:
    """A TOML basic string: JSON's escapes, and DEL, which JSON leaves alone. Source: TOML 1.0.0, "String"."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
