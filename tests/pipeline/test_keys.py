"""Keys: equal when and only when what they stand for is equal; code is followed through imports."""

from __future__ import annotations

import ast
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.keys import ROOT, code_digest, library_versions, sources, stage_key
from pipeline.run import STAGES

WORDS = st.text(max_size=5)
TREES = st.dictionaries(
    WORDS, st.one_of(st.integers(), WORDS, st.booleans(), st.lists(st.integers(), max_size=2)), max_size=3
)
PARTS = st.fixed_dictionaries(
    {
        "name": WORDS,
        "config": TREES,
        "inputs": TREES,
        "code": WORDS,
        "libraries": st.dictionaries(WORDS, WORDS, max_size=2),
        "outside": WORDS,
    }
)


def spelled(parts: Any) -> Any:
    """Equality that tells 1 from True, and ignores the order of keys."""
    if isinstance(parts, dict):
        return tuple(sorted((key, spelled(value)) for key, value in parts.items()))
    return repr(parts)


@given(PARTS, PARTS, st.sampled_from(["none", "some", "all"]))
def test_keys_are_equal_iff_their_parts_are(one: dict[str, Any], other: dict[str, Any], share: str) -> None:
    if share != "none":
        other = {**other, **{name: one[name] for name in list(one)[: 5 if share == "some" else 6]}}
    assert (stage_key(**one) == stage_key(**other)) == (spelled(one) == spelled(other))


@given(PARTS)
def test_the_order_of_a_configs_keys_does_not_matter(parts: dict[str, Any]) -> None:
    turned = {**parts, "config": dict(reversed(parts["config"].items()))}
    assert stage_key(**parts) == stage_key(**turned)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """stages.one imports stages.two lazily and edge_demo.three relatively from a package; stages.four nobody."""
    for name, text in {
        "stages/__init__.py": "",
        "stages/one.py": "import os\n\ndef f():\n    from stages import (\n        two,  # later\n    )\n",
        "stages/two.py": "import edge_demo.pack as p, sys\n",
        "stages/four.py": "",
        "edge_demo/__init__.py": "",
        "edge_demo/pack/__init__.py": "from .three import x\nfrom .. import up\n",
        "edge_demo/pack/three.py": "x = 1\n",
        "edge_demo/up.py": "",
        "edge_demo/other.py": "",
        "page.j2": "<p>",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


USED = ("stages/__init__", "stages/one", "stages/two", "edge_demo/__init__", "edge_demo/pack/__init__",
        "edge_demo/pack/three", "edge_demo/up")  # fmt: skip


def test_code_is_followed_through_imports(project: Path) -> None:
    found = {file.relative_to(project).with_suffix("").as_posix() for file in sources("stages.one", project)}
    assert found == set(USED)


@pytest.mark.parametrize("name", [f"{name}.py" for name in USED])
def test_a_change_in_any_imported_file_changes_the_digest(project: Path, name: str) -> None:
    before = code_digest("stages.one", root=project)
    with (project / name).open("a") as file:
        file.write("# changed\n")
    assert code_digest("stages.one", root=project) != before


def test_a_change_elsewhere_does_not(project: Path) -> None:
    before = code_digest("stages.one", ("*.j2",), project)
    (project / "stages/four.py").write_text("changed")
    (project / "edge_demo/other.py").write_text("changed")
    assert code_digest("stages.one", ("*.j2",), project) == before
    (project / "page.j2").write_text("changed")
    assert code_digest("stages.one", ("*.j2",), project) != before


def parsed(file: Path) -> set[str]:
    """The dotted names a file imports, by Python's own parser: the independent truth."""
    package = file.parent.relative_to(ROOT).parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join(part for part in (*above, node.module or "") if part)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_no_import_of_the_real_stages_is_missed(stage: Any) -> None:
    """Every file of ours that a parsed import statement names is covered."""
    covered = sources(stage.module)
    for file in covered:
        for name in parsed(file):
            module = ROOT.joinpath(*name.split("."))
            for target in (module.with_suffix(".py"), module / "__init__.py"):
                if name.split(".")[0] in ("pipeline", "stages", "edge_demo") and target.is_file():
                    assert target in covered, f"{file} imports {name}"


def test_library_versions_are_the_installed_ones() -> None:
    assert library_versions(["numpy", "no-such-library"]) == {"numpy": metadata.version("numpy")}
