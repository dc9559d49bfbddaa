"""Which channels of which layers hang together: read from the network itself, by tracing it once.

A channel that a convolution makes lives on in the batch norm behind it, in whatever it is added to, and in every layer
that reads it; who removes it has to remove all of that. Source: Fang et al. 2023, "DepGraph: Towards Any Structural
Pruning" (arXiv:2301.12900), section 3.1.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from edge_demo.errors import InputError

PASS_ON = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    *(nn.Dropout, nn.Identity, nn.Flatten),
)


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that can only be removed together."""

    size: int
    tensors: tuple[tuple[str, int], ...]
    """Name in the state dict and the axis along which its channels lie."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer."""

    name: str
    reads: int | None
    """Number of the group; None: fixed."""
    makes: int | None
    """Likewise."""
    norm: str = ""
    """The batch norm that follows it, where one does."""
    is_depthwise: bool = False


@dataclass(frozen=True, slots=True)
class Coupling:
    """Groups in the order in which the network is built, and the layers between them."""

    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]


@dataclass(slots=True)
class _Open:
    """A group in the making."""

    size: int
    order: int
    is_fixed: bool = False
    tensors: list[tuple[str, int]] = field(default_factory=list)


@dataclass(slots=True)
class _OpenLayer:
    name: str
    reads: _Open
    makes: _Open
    is_depthwise: bool = False


def coupling(core: nn.Module, fixed_outputs: int = 1) -> Coupling:
    """What hangs together in a network of convolutions, batch norms, additions, pooling and linear layers.

    Args:
        core: In evaluation mode; stays as it is.
        fixed_outputs: How many of its outputs, from the first on, keep their channels: the logits.

    Raises:
        InputError: an operation whose channels this reader cannot follow.
    """
    walk = _Walk(core)
    graph = fx.symbolic_trace(core).graph  # modules are left whole where torch made them, ours are looked into
    for node in graph.nodes:
        walk.take(node)
    for output in list(_outputs(graph))[:fixed_outputs]:
        walk.made[output].is_fixed = True
    return walk.finished()


def _outputs(graph: fx.Graph) -> Iterator[fx.Node]:
    (last,) = (node for node in graph.nodes if node.op == "output")
    yield from last.all_input_nodes


class _Walk:
    """Node by node through the traced graph."""

    def __init__(self, core: nn.Module) -> None:
        self.modules = dict(core.named_modules())
        self.made: dict[fx.Node, _Open] = {}
        self.layers: list[_OpenLayer] = []
        self.norms: dict[str, str] = {}

    def take(self, node: fx.Node) -> None:
        """Finds the group of what a node makes."""
        inputs = [self.made[other] for other in node.all_input_nodes]
        if node.op == "placeholder":
            self.made[node] = _Open(0, -1, is_fixed=True)
        elif node.op == "call_module":
            self.made[node] = self._module(str(node.target), self.modules[str(node.target)], inputs[0], node)
        elif node.op == "call_function" and node.target in (operator.add, torch.add):
            self.made[node] = self._joined(*inputs)
        elif node.op != "output":
            raise _unknown(str(node.target))

    def _module(self, name: str, module: nn.Module, seen: _Open, node: fx.Node) -> _Open:
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels != 1:
            self.layers.append(_OpenLayer(name, seen, seen, is_depthwise=True))
            return _with(seen, name, module, axis=0)
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            return self._layer(name, module, seen, module.out_channels)
        if isinstance(module, nn.Linear):
            if seen.order >= 0 and seen.size != module.in_features:
                raise _unknown(f"{name}, which reads more than one value per channel")
            return self._layer(name, module, seen, module.out_features)
        if isinstance(module, nn.BatchNorm2d):
            self.norms[str(node.all_input_nodes[0].target)] = name
            return _with(seen, name, module, axis=0)
        if isinstance(module, PASS_ON):
            return seen
        raise _unknown(f"{name} ({type(module).__name__})")

    def _layer(self, name: str, module: nn.Module, seen: _Open, size: int) -> _Open:
        made = _with(_Open(size, len(self.layers)), name, module, axis=0)
        seen.tensors.append((f"{name}.weight", 1))
        self.layers.append(_OpenLayer(name, seen, made))
        return made

    def _joined(self, one: _Open, other: _Open) -> _Open:
        if one is other:
            return one
        kept, gone = sorted((one, other), key=lambda group: group.order)
        kept.tensors += gone.tensors
        kept.is_fixed |= gone.is_fixed
        self.made = {node: kept if group is gone else group for node, group in self.made.items()}
        for layer in self.layers:
            layer.reads = kept if layer.reads is gone else layer.reads
            layer.makes = kept if layer.makes is gone else layer.makes
        return kept

    def finished(self) -> Coupling:
        """The groups that may shrink, numbered."""
        free = {id(layer.makes): layer.makes for layer in self.layers if not layer.makes.is_fixed}
        ordered = sorted(free.values(), key=lambda group: group.order)
        numbers = {id(group): index for index, group in enumerate(ordered)}
        layers = (
            Layer(
                name=layer.name,
                reads=numbers.get(id(layer.reads)),
                makes=numbers.get(id(layer.makes)),
                norm=self.norms.get(layer.name, ""),
                is_depthwise=layer.is_depthwise,
            )
            for layer in self.layers
        )
        return Coupling(tuple(Group(group.size, tuple(group.tensors)) for group in ordered), tuple(layers))


def _with(group: _Open, name: str, module: nn.Module, axis: int) -> _Open:
    """The group with a module's own tensors of one entry per channel."""
    group.tensors += [(f"{name}.{key}", axis) for key, tensor in module.state_dict().items() if tensor.dim()]
    return group


def _unknown(what: str) -> InputError:
    return InputError(f"train.prune: does not know how channels go through {what}", "prune a fast, resnet or mobile")
