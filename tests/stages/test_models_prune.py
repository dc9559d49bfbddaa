"""Pruning: what goes with a channel, what is kept, and that a network without dead channels answers as before.

What is left is fitted: against least squares by numpy, twins that take over for each other, and unseen pictures.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_demo.errors import InputError
from stages.models import build, macs
from stages.models import refit as module
from stages.models.coupled import Coupling, coupling
from stages.models.prune import BLOCK, importance, pruned
from stages.models.refit import refit
from stages.spec import ModelConfig

SIZE = (16, 14)
NETWORKS = {
    "mlp": ModelConfig(name="mlp", depth=3, width=32),
    "fast": ModelConfig(name="fast", width=8, depth=2),
    "fast, pooled stem": ModelConfig(name="fast", width=8, pool_stem=True),
    "resnet": ModelConfig(name="resnet", width=8, depth=2),
    "mobile": ModelConfig(name="mobile", width=8),
}


def built(config: ModelConfig) -> nn.Module:
    return build(config, 3, SIZE, 4)


def trained(config: ModelConfig) -> nn.Module:
    """A network whose batch norms have seen something, in evaluation mode."""
    torch.manual_seed(0)
    network = built(config)
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(16, 3, SIZE[1], SIZE[0]) * 2 + 1)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.uniform_(-0.5, 0.5)
                if module.weight.requires_grad:
                    module.weight.uniform_(0.5, 1.5)
    return network.eval()


def pictures(n: int) -> torch.Tensor:
    """(n, 3, H, W), the same ones each time."""
    return torch.randn(n, 3, SIZE[1], SIZE[0], generator=torch.Generator().manual_seed(n))


def cut(network: nn.Module, config: ModelConfig, share: float) -> tuple[nn.Module, ModelConfig]:
    return pruned(network, config, built, pictures(64), share)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_removing_dead_channels_changes_no_answer(name: str) -> None:
    """Half of every group is silenced: all its weights and norms 0, so that the rest computes the same without them."""
    network = trained(NETWORKS[name])
    structure = coupling(network)
    weights = network.state_dict()
    with torch.no_grad():
        for group in structure.groups:
            dead = torch.randperm(group.size, generator=torch.Generator().manual_seed(1))[: group.size // 2]
            for tensor, axis in group.tensors:
                weights[tensor].index_fill_(axis, dead, 0.0 if not tensor.endswith("running_var") else 1.0)
    batch = torch.randn(5, 3, SIZE[1], SIZE[0])
    smaller, _ = cut(network, NETWORKS[name], 0.45)
    assert macs(smaller, 3, SIZE) <= 0.55 * macs(network, 3, SIZE)
    torch.testing.assert_close(smaller.eval()(batch)[0], network(batch)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_config_builds_the_same_shape_and_the_share_is_kept(name: str) -> None:
    network = trained(NETWORKS[name])
    smaller, config = cut(network, NETWORKS[name], 0.6)
    again = built(config)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in smaller.state_dict().items()
    }
    assert macs(smaller, 3, SIZE) <= 0.4 * macs(network, 3, SIZE)
    assert all(size % BLOCK == 0 for size in config.channels)
    # a second time, from what was left
    third, final = cut(smaller, config, 0.3)
    assert macs(third, 3, SIZE) <= 0.7 * macs(smaller, 3, SIZE)
    assert len(final.channels) == len(config.channels)


def test_what_hangs_together_in_a_residual_network() -> None:
    """The stem and the second convolution of its stage's blocks make one group; so do a shortcut and what it joins."""
    structure = coupling(trained(ModelConfig(name="resnet", width=8)))
    made = {layer.name: layer.makes for layer in structure.layers}
    assert made["body.stem.conv"] == made["body.stages.0.0.second.conv"] == 0
    assert made["body.stages.0.0.first.conv"] == 1
    assert made["body.stages.1.1.first.conv"] == 2
    assert made["body.stages.1.1.second.conv"] == made["body.stages.1.1.shortcut.conv"] == 3
    assert made["head"] is None, "the labels stay"
    assert [group.size for group in structure.groups] == [16, 16, 32, 32]
    assert ("head.weight", 1) in structure.groups[3].tensors


def test_importance_by_hand() -> None:
    """Two hidden units: L1 norms of what makes and what reads them, each over its mean, averaged."""
    network = build(ModelConfig(name="mlp", width=2), 1, (2, 1), 2)
    weights = network.state_dict()
    hidden, head = weights["body.1.0.weight"], weights["head.weight"]
    hidden.copy_(torch.tensor([[1.0, -2.0], [4.0, 5.0]]))  # 3 and 9, mean 6
    head.copy_(torch.tensor([[1.0, 0.0], [1.0, -2.0]]))  # 2 and 2, mean 2
    (scores,) = importance(weights, coupling(network.eval()))
    torch.testing.assert_close(scores, torch.tensor([(3 / 6 + 1) / 2, (9 / 6 + 1) / 2]))


def test_batch_norm_counts_as_export_folds_it() -> None:
    config = ModelConfig(name="fast", width=4)
    network = trained(config)
    structure = coupling(network)
    assert all(layer.norm for layer in structure.layers if layer.name != "head")
    with torch.no_grad():
        network.get_parameter("body.stem.norm.weight")[3] = 1e-6
        network.get_parameter("body.stages.0.0.layers.conv.weight")[:, 3] = 0
    scores = importance(network.state_dict(), structure)
    assert int(scores[0].argmin()) == 3


@pytest.mark.parametrize(
    ("config", "share", "message"),
    [
        (ModelConfig(name="perceptron"), 0.5, "perceptron has no channels to remove"),
        (ModelConfig(name="convnet"), 0.5, "reads more than one value per channel"),
        (ModelConfig(name="fast", width=2), 0.9, r"train\.prune_share: 0.9 is too much"),
    ],
)
def test_what_cannot_be_pruned_is_refused(config: ModelConfig, share: float, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        cut(trained(config), config, share)
    assert caught.value.hint


def test_an_operation_nobody_knows_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    with pytest.raises(InputError, match="does not know how channels go through"):
        coupling(Odd().eval())


@pytest.mark.parametrize("name", ["mlp", "fast", "resnet", "mobile"])
def test_channels_of_another_number_of_layers_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"train\.model\.channels: 17 numbers, but this") as caught:
        built(ModelConfig(name=name, channels=(4,) * 17))
    assert "without it they are [" in caught.value.hint


@pytest.mark.parametrize("name", ["convnet", "perceptron"])
def test_channels_of_a_fixed_network_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"train\.model\.channels: has no effect"):
        built(ModelConfig(name=name, channels=(4, 4)))


# What is left is fitted to what the whole one gave.


def without(network: nn.Module, config: ModelConfig, kept: Sequence[Tensor], structure: Coupling) -> nn.Module:
    """The network without the other channels, nothing fitted."""
    smaller = built(config.model_copy(update={"channels": tuple(len(indices) for indices in kept)}))
    weights = dict(network.state_dict())
    for group, indices in zip(structure.groups, kept, strict=True):
        for name, axis in group.tensors:
            weights[name] = weights[name].index_select(axis, indices)
    smaller.load_state_dict(weights)
    return smaller.eval()


def evens(structure: Coupling) -> list[Tensor]:
    return [torch.arange(0, group.size, 2) for group in structure.groups]


def test_a_linear_layer_gets_what_numpys_least_squares_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """One hidden layer of 6, of which 4 stay: the head is fitted to the whole head's answers minus its bias."""
    monkeypatch.setattr(module, "RIDGE", 1e-12)
    torch.manual_seed(0)
    whole = build(ModelConfig(name="mlp", width=6), 1, (4, 3), 3).eval()
    smaller = build(ModelConfig(name="mlp", channels=(4,)), 1, (4, 3), 3).eval()
    kept, weights = torch.tensor([0, 2, 3, 5]), dict(whole.state_dict())
    weights["body.1.0.weight"], weights["body.1.0.bias"] = (
        weights["body.1.0.weight"][kept],
        weights["body.1.0.bias"][kept],
    )
    weights["head.weight"] = weights["head.weight"][:, kept]
    smaller.load_state_dict(weights)
    batch = torch.randn(50, 1, 3, 4)
    flat = batch.flatten(1).double().numpy()
    w, b = (whole.state_dict()[f"body.1.0.{name}"].double().numpy() for name in ("weight", "bias"))
    hidden = np.maximum(flat @ w.T + b, 0)
    head, bias = (whole.state_dict()[f"head.{name}"].double().numpy() for name in ("weight", "bias"))
    truth, *_ = np.linalg.lstsq(hidden[:, kept.numpy()], hidden @ head.T, rcond=None)
    refit(smaller, whole, coupling(whole).layers, [kept], batch)
    assert smaller.state_dict()["head.weight"].numpy() == pytest.approx(truth.T, rel=1e-4, abs=1e-5)
    assert smaller.state_dict()["head.bias"].numpy() == pytest.approx(bias)
    assert torch.equal(smaller.state_dict()["body.1.0.weight"], weights["body.1.0.weight"]), "reads the whole input"


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "mobile"])
def test_a_channel_takes_over_what_its_twin_did(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every odd channel is made as the one before it; without the odd ones the answers can stay the same, and do."""
    monkeypatch.setattr(module, "RIDGE", 1e-9)
    config = NETWORKS[name]
    network = trained(config)
    structure = coupling(network)
    makes = {f"{layer.name}.weight" for layer in structure.layers if layer.makes is not None}
    weights = network.state_dict()
    for group in structure.groups:
        for tensor, axis in group.tensors:
            if axis == 0 and (tensor in makes or weights[tensor].dim() == 1):
                weights[tensor][1::2] = weights[tensor][::2]
    kept = evens(structure)
    smaller = without(network, config, kept, structure)
    unseen = pictures(20)
    assert not torch.allclose(smaller(unseen)[0], network(unseen)[0], atol=0.01), "as cut, it answers something else"
    refit(smaller, network, structure.layers, kept, pictures(300))
    torch.testing.assert_close(smaller(unseen)[0], network(unseen)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_answers_to_unseen_pictures_come_closer(name: str) -> None:
    config = NETWORKS[name]
    network = trained(config)
    structure = coupling(network)
    kept, unseen = evens(structure), pictures(100)
    plain = without(network, config, kept, structure)
    fitted = copy.deepcopy(plain)
    refit(fitted, network, structure.layers, kept, pictures(600))
    off, still_off = ((net(unseen)[0] - network(unseen)[0]).square().mean() for net in (plain, fitted))
    assert bool(still_off < 0.75 * off)
    hooked = [
        part for net in (network, fitted) for part in net.modules() if part._forward_hooks or part._forward_pre_hooks
    ]
    assert not hooked


def test_of_large_pictures_the_first_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIXELS", 1)
    monkeypatch.setattr(module, "FEWEST", 8)
    config = NETWORKS["fast"]
    network = trained(config)
    structure = coupling(network)
    first, all_of_them = (without(network, config, evens(structure), structure) for _ in range(2))
    refit(first, network, structure.layers, evens(structure), pictures(16)[:8])
    refit(all_of_them, network, structure.layers, evens(structure), pictures(16))
    for left, right in zip(first.parameters(), all_of_them.parameters(), strict=True):
        assert torch.equal(left, right)


def test_dead_inputs_leave_their_weights_alone() -> None:
    """A channel that is 0 on every picture says nothing: no division by nothing, the weights that read it stay."""
    config = NETWORKS["fast"]
    network = trained(config)
    structure = coupling(network)
    with torch.no_grad():
        network.get_parameter("body.stem.norm.bias").fill_(-1e6)  # the ReLU behind gives 0 everywhere
    smaller = without(network, config, evens(structure), structure)
    name = next(f"{layer.name}.weight" for layer in structure.layers if layer.reads == 0)
    before = smaller.get_parameter(name).clone()
    refit(smaller, network, structure.layers, evens(structure), pictures(64))
    assert torch.equal(smaller.get_parameter(name), before)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in smaller.parameters())
