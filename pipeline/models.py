"""`pipeline train --list-models`: the networks there are, what they cost, and what INT8 makes of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from edge_demo.errors import missing_extra


def model_cards() -> list[dict[str, Any]]:
    """One JSON-ready row per network, as `stages.models.cards.Card`; figures are those of the default dials.

    Raises:
        InputError: torch is not installed.
    """
    try:
        from stages.models import MODELS
        from stages.models.cards import card
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise missing_extra("train --list-models", "torch", "train") from error
    return [asdict(card(name)) for name in MODELS]


def models_table(cards: list[dict[str, Any]]) -> Table:
    """The same for people; the two figures of a cell are for the two picture sizes of the title."""
    table = Table(box=None, pad_edge=False, title=f"Default dials, 10 classes; {_sizes(cards)}")
    table.title_justify = "left"
    for name in ("train.model.name", "task", "dials"):
        table.add_column(name)
    for name in ("parameters", "million MACs", "field px"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("INT8 in both runtimes")
    for card in cards:
        table.add_row(
            card["name"],
            card["task"],
            ", ".join(card["dials"]),
            " / ".join(f"{cost['parameters']:,}" for cost in card["costs"]),
            " / ".join(f"{cost['macs'] / 1e6:.2f}" for cost in card["costs"]),
            " / ".join(str(cost["receptive_field"]) for cost in card["costs"]),
            card["int8"],
        )
    return table


def _sizes(cards: list[dict[str, Any]]) -> str:
    """`classify on 28x28x1 and 32x32x3 pictures, detect on ...`; what several tasks share is said once."""
    tasks_of: dict[str, list[str]] = {}
    for card in cards:
        sizes = " and ".join(f"{w}x{h}x{cost['in_channels']}" for cost in card["costs"] for w, h in [cost["size_wh"]])
        tasks = tasks_of.setdefault(sizes, [])
        if card["task"] not in tasks:
            tasks.append(card["task"])
    return ", ".join(f"{' and '.join(tasks)} on {sizes} pictures" for sizes, tasks in tasks_of.items())


def models_note() -> str:
    """What the table cannot say in its cells."""
    from stages.models.cards import INT8_ACTIVATIONS

    return (
        "field px: side of the square that one value of the body's last map sees.\n"
        f"train.model.activation: {INT8_ACTIVATIONS}"
    )
