"""The newer networks, worked by hand: what they compute, parameters, MACs, receptive field, start, activation, card."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from edge_demo.errors import InputError
from stages.models import MODELS, build, macs, parameters, receptive_field
from stages.models.cards import Card, card
from stages.models.layers import ACTIVATIONS, PooledConv
from stages.models.mobile import InvertedResidual
from stages.spec import ModelConfig

FORMULAS = {
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "hardswish": lambda x: x * min(max(x + 3, 0.0), 6.0) / 6,
}
OWN = {"mlp": nn.ReLU, "convnet": nn.ReLU, "fast": nn.ReLU, "resnet": nn.ReLU, "mobile": nn.ReLU6}


def network(name: str, in_channels: int = 1, size_wh: tuple[int, int] = (28, 28), labels: int = 10, **dials: object):
    torch.manual_seed(0)
    return build(ModelConfig.model_validate({"name": name, **dials}), in_channels, size_wh, labels)


# --- parameters and MACs ---------------------------------------------------------------------------------------------


def test_perceptron_counts_by_hand() -> None:
    model = network("perceptron", 3, (9, 5), 4)
    assert parameters(model) == 3 * 9 * 5 * 4 + 4
    assert macs(model, 3, (9, 5)) == 3 * 9 * 5 * 4


def test_mlp_counts_by_hand() -> None:
    model = network("mlp", 1, (9, 5), 4, depth=2, width=7)
    assert parameters(model) == (45 * 7 + 7) + (7 * 7 + 7) + (7 * 4 + 4)
    assert macs(model, 1, (9, 5)) == 45 * 7 + 7 * 7 + 7 * 4


def test_fast_counts_by_hand() -> None:
    """Width 1, depth 1, 16x16 gray, 3 labels: stem and one convolution at 8x8 with 2 channels, two at 4x4 with 4."""
    model = network("fast", 1, (16, 16), 3, width=1)
    at_8, at_4 = (36 * 2, 9 * 2 * 2), (9 * 2 * 4, 9 * 4 * 4)
    norms = 2 * (2 + 4 + 4) + 2  # the norm after the pool has no scale to learn
    assert parameters(model) == sum(at_8) + sum(at_4) + norms + (4 * 3 + 3)
    assert macs(model, 1, (16, 16)) == 64 * sum(at_8) + 16 * sum(at_4) + 4 * 3


def test_a_stem_that_pools_is_all_of_the_first_stage() -> None:
    """Width 1, depth 1, 16x16 gray, 3 labels: stem at 8x8 with 2 channels, two convolutions at 4x4 with 4."""
    model = network("fast", 1, (16, 16), 3, width=1, pool_stem=True)
    at_8, at_4 = 36 * 2, (9 * 2 * 4, 9 * 4 * 4)
    norms = 2 * (4 + 4) + 2  # the norm after the pool has no scale to learn
    assert parameters(model) == at_8 + sum(at_4) + norms + (4 * 3 + 3)
    assert macs(model, 1, (16, 16)) == 64 * at_8 + 16 * sum(at_4) + 4 * 3


def test_a_smaller_last_side_is_a_stage_more() -> None:
    """Width 1, depth 1, 16x16 gray, 3 labels: as above, and two convolutions at 2x2 with 8 channels."""
    two = network("fast", 1, (16, 16), 3, width=1)
    three = network("fast", 1, (16, 16), 3, width=1, last_side=2)
    added = 9 * 4 * 8 + 9 * 8 * 8
    norms_and_head = 2 * (8 + 8) - 4 + (8 - 4) * 3  # the norm that is pooled now loses its scale
    assert parameters(three) - parameters(two) == added + norms_and_head
    assert macs(three, 1, (16, 16)) - macs(two, 1, (16, 16)) == 4 * added + (8 - 4) * 3


@pytest.mark.parametrize("name", ["fast", "resnet", "mobile"])
@pytest.mark.parametrize("size_wh", [(150, 8), (8, 150), (9, 8)])
def test_stages_end_where_the_shorter_side_is_used_up(name: str, size_wh: tuple[int, int]) -> None:
    model = network(name, 1, size_wh, 3, width=1, last_side=1).eval()
    assert model(torch.zeros(1, 1, size_wh[1], size_wh[0]))[0].shape == (1, 3)


def test_mobile_counts_by_hand() -> None:
    """Width 2, depth 1, 16x16 gray, 3 labels: 8x8 with 4, then 2 channels, 4x4 with 4; six times as many inside."""
    model = network("mobile", 1, (16, 16), 3, width=2)
    stem = 9 * 4
    first = 9 * 4 + 4 * 2
    second = 2 * 12 + 9 * 12 + 12 * 2
    expand, rest = 2 * 12, 9 * 12 + 12 * 4
    fourth = 4 * 24 + 9 * 24 + 24 * 4
    last = 4 * 16
    norms = 2 * (4 + (4 + 2) + (12 + 12 + 2) + (12 + 12 + 4) + (24 + 24 + 4) + 16)
    assert parameters(model) == stem + first + second + expand + rest + fourth + last + norms + (16 * 3 + 3)
    at_8, at_4 = stem + first + second + expand, rest + fourth + last
    assert macs(model, 1, (16, 16)) == 64 * at_8 + 16 * at_4 + 16 * 3


# --- what they compute -----------------------------------------------------------------------------------------------


def test_perceptron_is_a_matrix_product() -> None:
    model = network("perceptron", 2, (4, 3), 5).eval()
    nn.init.normal_(model.head.weight)
    batch = torch.randn(6, 2, 3, 4)
    logits, embedding = model(batch)
    torch.testing.assert_close(logits, batch.reshape(6, -1) @ model.head.weight.T + model.head.bias)
    assert torch.equal(embedding, batch.reshape(6, -1))


def test_mlp_computes_what_its_layers_say() -> None:
    model = network("mlp", 1, (6, 5), 3, depth=2, width=4, activation="silu").eval()
    batch = torch.randn(7, 1, 5, 6)
    w1, b1, w2, b2, w3, b3 = model.parameters()
    x = F.silu(F.silu(batch.flatten(1) @ w1.T + b1) @ w2.T + b2)
    logits, embedding = model(batch)
    torch.testing.assert_close(embedding, x)
    torch.testing.assert_close(logits, x @ w3.T + b3)


def test_fast_sees_every_pixel_at_half_the_side() -> None:
    """The stem is a 3x3 convolution of the space-to-depth picture."""
    stem = network("fast", 3).body.stem[0]
    batch = torch.randn(2, 3, 28, 28)
    weight = stem.weight.unflatten(2, (3, 2)).unflatten(4, (3, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    expected = F.conv2d(F.pixel_unshuffle(batch, 2), weight, padding=1)
    torch.testing.assert_close(stem(batch), expected, rtol=1e-4, atol=1e-5)


def pooled_conv(act: str) -> PooledConv:
    """From 3 to 4 channels, with a norm that has seen something."""
    torch.manual_seed(0)
    layer = PooledConv(3, 4, ACTIVATIONS[act])
    norm = layer.layers[1]
    for value in (norm.bias, norm.running_mean):
        nn.init.normal_(value)
    nn.init.uniform_(norm.running_var, 0.1, 9)
    return layer


@given(size_wh=st.tuples(st.integers(2, 9), st.integers(2, 9)), act=st.sampled_from(sorted(ACTIVATIONS)))
@settings(deadline=None, max_examples=15)
def test_pooling_first_is_pooling_last(size_wh: tuple[int, int], act: str) -> None:
    """What ships computes what was trained: with the same statistics, in the order of the training."""
    layer = pooled_conv(act).eval()
    x = torch.randn(2, 3, size_wh[1], size_wh[0])
    conv, norm, activation = layer.layers
    pooled = F.max_pool2d(conv(x), 2)
    in_order = activation(F.batch_norm(pooled, norm.running_mean, norm.running_var, None, norm.bias))
    torch.testing.assert_close(layer(x), in_order, rtol=1e-4, atol=1e-5)
    assert layer(x).shape == (2, 4, size_wh[1] // 2, size_wh[0] // 2)


def test_training_normalizes_what_was_pooled() -> None:
    layer = pooled_conv("relu").train()
    x = torch.randn(8, 3, 6, 6)
    conv, norm, _ = layer.layers
    pooled = F.max_pool2d(conv(x), 2)
    centred = (pooled - pooled.mean((0, 2, 3), keepdim=True)) / pooled.std((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(layer(x), F.relu(centred + norm.bias.view(1, -1, 1, 1)), rtol=1e-3, atol=1e-4)
    layer(x).sum().backward()
    assert norm.weight.grad is None
    assert torch.equal(norm.weight, torch.ones(4))


def test_an_inverted_residual_computes_what_the_paper_says() -> None:
    torch.manual_seed(0)
    block = InvertedResidual(2, 12, 2, 1, nn.ReLU6, expands=True, adds=True).eval()
    expand, depthwise, project = (m.weight for m in block.modules() if isinstance(m, nn.Conv2d))
    x = 3 * torch.randn(2, 2, 5, 4)
    scale = 1 / math.sqrt(1 + 1e-5)  # a fresh batch norm in evaluation mode
    inner = F.conv2d(x, expand).mul(scale).clamp(0, 6)
    inner = F.conv2d(inner, depthwise, padding=1, groups=12).mul(scale).clamp(0, 6)
    torch.testing.assert_close(block(x), x + F.conv2d(inner, project) * scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("seen", "made", "stride"), [(2, 3, 1), (2, 2, 2), (2, 3, 2)])
def test_an_inverted_residual_rounds_its_sides_up(seen: int, made: int, stride: int) -> None:
    block = InvertedResidual(seen, 6 * seen, made, stride, nn.ReLU6, expands=True, adds=False)
    assert block(torch.zeros(1, seen, 7, 5)).shape == (1, made, math.ceil(7 / stride), math.ceil(5 / stride))


def test_an_inverted_residual_adds_only_equal_shapes() -> None:
    """Every block of a stage but its first, also where the first changes neither the channels nor the side."""
    model = build(ModelConfig(name="mobile", width=4, depth=2, last_side=2), 1, (28, 28), 10)
    stages = [[block.adds for block in stage] for stage in model.body.stages]
    assert stages == [[False, True, True]] * len(stages)
    for stage in model.body.stages:
        assert all(block.layers.project.conv.out_channels == block.layers[0].conv.in_channels for block in stage[1:])


# --- receptive field -------------------------------------------------------------------------------------------------


def probed(model: nn.Module, size: int) -> int:
    """Side of the square of pixels that the middle of the last feature map has a gradient to: the definition itself.

    Max pooling and activations become linear, so that no path is closed; side branches stay.
    """
    features: list[Tensor] = []
    pool = model.body[-1]
    handle = pool.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    kinds = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.BatchNorm2d)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride))
            elif isinstance(child, kinds):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.Conv2d):
                nn.init.constant_(child.weight, 0.01)
    model.double()
    batch = torch.ones(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    model(batch)
    handle.remove()
    height, width = features[0].shape[2:]
    features[0][0, :, height // 2, width // 2].sum().backward()
    rows = batch.grad[0, 0].abs().sum(dim=1).nonzero()
    return int(rows.max() - rows.min()) + 1


@pytest.mark.parametrize(
    ("name", "dials"),
    [("convnet", {}), *((name, {"depth": depth}) for name in ("fast", "resnet", "mobile") for depth in (1, 2))],
)
@pytest.mark.parametrize("side", [28, 40])
def test_the_receptive_field_is_what_gradients_reach(name: str, dials: dict[str, int], side: int) -> None:
    """Networks made for 28 and 40 pixels, looking at a picture that is larger than their field."""
    large = 256
    made_for = large if name == "convnet" else side  # its head fits one size; the others pool globally
    model = network(name, size_wh=(made_for, made_for), **dials, **({"width": 1} if dials else {}))
    field = receptive_field(model, 1, (made_for, made_for))
    assert field < large - 32, "else the border would cut it"
    assert probed(model, large) == field


def test_receptive_fields_by_hand() -> None:
    """Layer by layer, r + (k - 1) j."""
    assert receptive_field(network("convnet"), 1, (28, 28)) == 1 + 2 + 1 + 2 * 2 + 1 * 2
    assert receptive_field(network("fast"), 1, (28, 28)) == 6 + 2 * 2 + 1 * 2 + 2 * (2 * 4)
    assert receptive_field(network("fast", pool_stem=True), 1, (28, 28)) == 6 + 1 * 2 + 2 * (2 * 4)
    assert receptive_field(network("resnet"), 1, (28, 28)) == 6 + 2 * (2 * 2) + 1 * 2 + 2 * (2 * 4)
    assert receptive_field(network("mobile"), 1, (28, 28)) == 3 + 3 * (2 * 2) + 2 * 4
    assert receptive_field(network("mlp", size_wh=(9, 5)), 1, (9, 5)) == 9, "no convolution: the whole picture"


def test_the_receptive_field_leaves_the_model_as_it_was() -> None:
    model = network("mobile").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    receptive_field(model, 1, (28, 28))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


# --- start -----------------------------------------------------------------------------------------------------------


def test_perceptron_starts_with_the_loss_of_guessing() -> None:
    logits, _ = network("perceptron", labels=7)(torch.randn(5, 1, 28, 28))
    assert F.cross_entropy(logits, torch.arange(5)).item() == pytest.approx(math.log(7))


def test_mlp_starts_as_he_says() -> None:
    """Kaiming normal, fan in: standard deviation sqrt(2 / 784) in the first layer; the signal keeps its size."""
    model = network("mlp", width=256, depth=4).eval()
    linear = [module for module in model.body.modules() if isinstance(module, nn.Linear)]
    assert linear[0].weight.std().item() == pytest.approx(math.sqrt(2 / 784), rel=0.02)
    assert linear[3].weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    assert not any(module.bias.any() for module in linear)
    _, embedding = model(torch.randn(64, 1, 28, 28))
    assert 0.5 < embedding.square().mean().item() < 2.0


@pytest.mark.parametrize("name", ["fast", "mobile"])
def test_convolutions_start_as_he_says(name: str) -> None:
    """Kaiming normal, fan out: channels made per group x kernel area."""
    for module in network(name, width=64).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            # torch's fan out of a grouped kernel is that of all groups together
            fan = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.03)


# --- activation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FORMULAS))
@given(value=st.floats(-20, 20))
@settings(deadline=None, max_examples=50)
def test_activations_are_the_published_formulas(name: str, value: float) -> None:
    computed = ACTIVATIONS[name]()(torch.tensor([value], dtype=torch.float64)).item()
    assert computed == pytest.approx(FORMULAS[name](value), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", sorted(OWN))
@pytest.mark.parametrize("activation", ["auto", *sorted(FORMULAS)])
def test_the_chosen_activation_is_the_only_one(name: str, activation: str) -> None:
    model = network(name, activation=activation)
    kinds = {type(ACTIVATIONS[known]()) for known in ACTIVATIONS}
    wanted = OWN[name] if activation == "auto" else type(ACTIVATIONS[activation]())
    assert {type(module) for module in model.modules()} & kinds == {wanted}
    assert type(ACTIVATIONS[MODELS[name].activation]()) is OWN[name]


def test_the_activation_changes_no_weight() -> None:
    """Same seed, same weights: activations compare on equal terms."""
    relu, silu = (network("resnet", activation=name).state_dict() for name in ("relu", "silu"))
    assert relu.keys() == silu.keys()
    assert all(torch.equal(relu[key], silu[key]) for key in relu)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValidationError, match="activation"):
        ModelConfig.model_validate({"activation": "gelu"})


# --- the card --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS))
def test_cards_say_what_is_true(name: str) -> None:
    state = torch.get_rng_state()
    shown = card(name)
    assert torch.equal(torch.get_rng_state(), state)
    assert shown.summary
    assert len(shown.summary) < 121
    assert shown.int8
    for cost in shown.costs:
        model = build(ModelConfig(name=name), cost.in_channels, cost.size_wh, 10)
        assert cost.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert cost.macs > 0
    assert json.loads(json.dumps(asdict(shown)))["name"] == name


def test_cards_list_the_dials_that_are_taken() -> None:
    def dials(name: str) -> tuple[str, ...]:
        shown: Card = card(name)
        return shown.dials

    assert dials("perceptron") == ("dropout",)
    assert dials("convnet") == ("activation", "dropout")
    assert dials("mlp") == ("depth", "width", "activation", "dropout")
    for name in ("fast", "resnet", "mobile"):
        own = ("pool_stem", "identity_start", "whiten_start") if name == "fast" else ()
        assert dials(name) == ("depth", "width", "activation", "dropout", "last_side", *own)


def test_a_card_of_nothing() -> None:
    with pytest.raises(InputError, match="did you mean 'convnet'"):
        card("convet")
