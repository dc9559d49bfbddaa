"""The README's commands work as written: every `console` fence is executed, in order, in one temporary folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stages.spec import AugmentConfig, ModelConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TRAINING = ROOT / "docs" / "training.md"


def readme_commands() -> list[str]:
    """The `$ ...` lines of every fence that is exactly ```console (not ```console no-run)."""
    fences = re.findall(r"^```console\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line[2:] for fence in fences for line in fence.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("command", readme_commands())
def test_readme_command_works_as_written(command: str, workdir: Path) -> None:
    """Each exits 0; later ones use what earlier ones made, as a reader would."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        shlex.split(command), cwd=workdir, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr


def test_readme_links_and_tree_name_files_that_exist() -> None:
    """Relative links of the README, and the files of its annotated tree, are really there."""
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text):
        assert (ROOT / target).exists(), target
    tree = re.search(r"^```text tree\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert tree, "the README has an annotated tree in a ```text tree fence"
    folder = ""
    for line in tree.group(1).splitlines():
        if not line.strip():
            continue
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            assert (ROOT / name).exists(), name
        else:
            assert (ROOT / folder / name).exists(), f"{folder}{name}"


@pytest.mark.parametrize("section", [TrainConfig, ModelConfig, AugmentConfig])
def test_training_page_names_every_key_with_its_default(
    section: type[TrainConfig | ModelConfig | AugmentConfig],
) -> None:
    """As "- `key` [default]: ...", or among several keys of one line; keys that are sections have a heading."""
    listed = dict(re.findall(r"`(\w+)` \[(.*?)\](?=[:,])", TRAINING.read_text(encoding="utf-8")))
    for name, field in section.model_fields.items():
        if name in ("model", "augment"):
            assert f"`[train.{name}]`" in TRAINING.read_text(encoding="utf-8")
            continue
        default = [] if field.default == () else field.default
        assert json.loads(listed[name]) == default, name
