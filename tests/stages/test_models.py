"""The networks: sizes counted by hand, initialization, any picture size, operators that INT8 likes, errors."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edge_demo.errors import InputError
from stages.models import MODELS, build, macs, parameters
from stages.models.whiten import FLOOR, whiten_start
from stages.spec import ModelConfig

INT8_FRIENDLY = (
    *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    *(nn.Linear, nn.Flatten, nn.Dropout),
)
CLASSIFIERS = [name for name, row in MODELS.items() if "classify" in row.tasks]
SIDES = {name: 28 if name in CLASSIFIERS else 160 for name in MODELS}
WITH_DIALS = ("mlp", "fast", "resnet", "mobile")


def test_convnet_is_the_keras_example() -> None:
    """34,826 parameters is what `model.summary()` prints on keras.io/examples/vision/mnist_convnet."""
    model = build(ModelConfig(name="convnet"), 1, (28, 28), 10)
    assert parameters(model) == 34_826
    # outputs x kernel x channels in: 26x26x32 x 9, 11x11x64 x (9 x 32), 10 x 1600
    assert macs(model, 1, (28, 28)) == 26 * 26 * 32 * 9 + 11 * 11 * 64 * 9 * 32 + 10 * 1600


def test_convnet_computes_what_its_layers_say() -> None:
    model = build(ModelConfig(name="convnet", dropout=0.5), 3, (14, 11), 4).eval()
    batch = torch.randn(2, 3, 11, 14)
    w1, b1, w2, b2, w3, b3 = model.parameters()
    x = F.max_pool2d(F.conv2d(batch, w1, b1).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, w2, b2).relu(), 2).flatten(1)
    logits, embedding = model(batch)
    torch.testing.assert_close(embedding, x)
    torch.testing.assert_close(logits, x @ w3.T + b3)


def test_convnet_starts_as_keras_does() -> None:
    """Glorot uniform: within sqrt(6 / (fan in + fan out)), variance limit^2 / 3; zero biases."""
    torch.manual_seed(0)
    model = build(ModelConfig(name="convnet"), 1, (28, 28), 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    limit = math.sqrt(6 / (32 * 9 + 64 * 9))
    weight = convolutions[1].weight
    assert weight.abs().max() <= limit
    assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert all(not m.bias.any() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None)


def test_resnet_counts_by_hand() -> None:
    """Width 1, depth 1, 16x16 gray, 3 labels: stem 6x6 to 2 channels, a block of 2, a block 2 to 4 with shortcut."""
    model = build(ModelConfig(name="resnet", width=1), 1, (16, 16), 3)
    stem = 36 * 2 + 2 * 2
    first = 2 * (9 * 2 * 2 + 2 * 2)
    second = (9 * 2 * 4 + 8) + (9 * 4 * 4 + 8) + (2 * 4 + 8)
    assert parameters(model) == stem + first + second + (4 * 3 + 3)
    at_8 = 64 * (36 * 2) + 64 * 2 * (9 * 2 * 2)
    at_4 = 16 * (9 * 2 * 4 + 9 * 4 * 4 + 2 * 4)
    assert macs(model, 1, (16, 16)) == at_8 + at_4 + 4 * 3


def test_macs_leaves_the_model_as_it_was() -> None:
    model = build(ModelConfig(), 1, (28, 28), 10).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    macs(model, 1, (28, 28))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_grouped_convolutions_cost_a_share() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return self.conv(batch)

    assert macs(Grouped(), 4, (5, 6)) == 5 * 6 * 8 * 9 * 4 // 2


def test_resnet_starts_as_he_says() -> None:
    """Kaiming normal, fan out: standard deviation sqrt(2 / (9 x 64)) for a 3x3 convolution to 64 channels."""
    torch.manual_seed(0)
    model = build(ModelConfig(), 1, (28, 28), 10)
    weight = next(m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.shape == (64, 64, 3, 3))
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)


def test_identity_start_hands_on_what_comes_in() -> None:
    """As many channels as come in, unchanged; every other weight is that of the same seed without the dial."""

    def convolutions(**dials: bool) -> list[nn.Conv2d]:
        torch.manual_seed(0)
        model = build(ModelConfig(name="fast", width=2, **dials), 3, (32, 32), 10)
        return [m for m in model.modules() if isinstance(m, nn.Conv2d)]

    (stem, *others), (plain_stem, *plain) = convolutions(identity_start=True), convolutions()
    assert torch.equal(stem.weight, plain_stem.weight)
    assert {(m.in_channels, m.out_channels) for m in others} == {(4, 4), (4, 8), (8, 8)}
    for conv, as_drawn in zip(others, plain, strict=True):
        batch, n = torch.randn(2, conv.in_channels, 6, 5), conv.in_channels
        torch.testing.assert_close(conv(batch)[:, :n], batch)
        assert torch.equal(conv.weight[n:], as_drawn.weight[n:])


def test_whiten_start_makes_uncorrelated_channels_and_their_negatives() -> None:
    """Patches by numpy's sliding windows; channels beyond both signs of all directions stay as they were drawn."""
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(40, 1, 24, 24)).cumsum(axis=2).cumsum(axis=3)  # neighbours are alike, as in photographs
    torch.manual_seed(0)
    core = build(ModelConfig(name="fast", width=40, whiten_start=True), 1, (24, 24), 10)
    conv = next(m for m in core.modules() if isinstance(m, nn.Conv2d))
    drawn = conv.weight.detach().clone()
    whiten_start(core, torch.from_numpy(pictures).float())

    windows = np.lib.stride_tricks.sliding_window_view(pictures, (6, 6), axis=(2, 3))[:, 0, ::2, ::2]
    patches = windows.reshape(-1, 36)
    made = (patches - patches.mean(axis=0)) @ conv.weight.detach().double().numpy().reshape(80, 36).T
    variances = np.linalg.eigvalsh(np.cov(patches.T, bias=True))[::-1]
    found = np.cov(made[:, :36].T, bias=True)
    np.testing.assert_allclose(found, np.diag(variances / (variances + FLOOR)), atol=2e-3)
    np.testing.assert_array_equal(conv.weight[36:72].detach(), -conv.weight[:36].detach())
    assert torch.equal(conv.weight[72:], drawn[72:])


def test_resnet_stem_is_space_to_depth_and_a_3x3_convolution() -> None:
    model = build(ModelConfig(), 3, (28, 28), 10)
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    batch = torch.randn(2, 3, 28, 28)
    # kernel (o, c, 2 y + dy, 2 x + dx) -> (o, 4 c + 2 dy + dx, y, x), pixel_unshuffle's order of channels
    weight = stem.weight.unflatten(2, (3, 2)).unflatten(4, (3, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    expected = F.conv2d(F.pixel_unshuffle(batch, 2), weight, padding=1)
    torch.testing.assert_close(stem(batch), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(CLASSIFIERS)),
    size_wh=st.tuples(st.integers(10, 70), st.integers(10, 70)),
    channels=st.sampled_from((1, 3)),
    labels=st.integers(2, 12),
    n=st.integers(1, 3),
)
def test_any_size_goes_through(name: str, size_wh: tuple[int, int], channels: int, labels: int, n: int) -> None:
    """Odd and narrow pictures too; logits are the head of the embedding in evaluation mode."""
    width = 4 if name in WITH_DIALS else ModelConfig().width
    model = build(ModelConfig(name=name, width=width, dropout=0.5), channels, size_wh, labels).eval()
    with torch.no_grad():
        logits, embedding = model(torch.randn(n, channels, size_wh[1], size_wh[0]))
    assert logits.shape == (n, labels)
    assert embedding.shape[0] == n
    assert embedding.ndim == 2
    torch.testing.assert_close(logits, model.head(embedding))
    assert parameters(model) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_module_runs_once_and_suits_int8(name: str) -> None:
    model = build(ModelConfig(name=name), 1, (SIDES[name], SIDES[name]), 10).eval()
    leaves = [m for m in model.modules() if not list(m.children()) and not isinstance(m, nn.Identity)]
    calls: Counter[int] = Counter()
    for leaf in leaves:
        assert isinstance(leaf, INT8_FRIENDLY)
        leaf.register_forward_hook(lambda module, *_: calls.update([id(module)]))
    model(torch.zeros(1, 1, SIDES[name], SIDES[name]))
    assert [calls[id(leaf)] for leaf in leaves] == [1] * len(leaves)


@pytest.mark.parametrize("name", WITH_DIALS)
def test_dials(name: str) -> None:
    def size(**dials: int) -> int:
        return parameters(build(ModelConfig(name=name, **dials), 1, (28, 28), 10))

    assert size() < size(depth=2) < size(depth=3)
    assert size(width=8) < size(width=16) < size(width=32)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "perceptron"])
def test_same_seed_same_network(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = build(ModelConfig(name=name), 1, (SIDES[name], SIDES[name]), 10)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = build(ModelConfig(name=name, depth=2 if name in WITH_DIALS else 1), 3, (16, 13), 4).train()
    F.cross_entropy(model(torch.randn(8, 3, 13, 16))[0], torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])).backward()
    for weight_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, weight_name
        assert parameter.grad.abs().sum() > 0, weight_name


@pytest.mark.parametrize(
    ("config", "size_wh", "message"),
    [
        (ModelConfig(name="resnest"), (28, 28), "unknown network 'resnest'; did you mean 'resnet'?"),
        (ModelConfig(name="vit"), (28, 28), "known: perceptron, mlp, convnet, fast, resnet, mobile, detector"),
        (ModelConfig(name="convnet", width=8), (28, 28), "train.model.width: has no effect on convnet"),
        (ModelConfig(name="convnet", depth=2), (28, 28), "train.model.depth: has no effect on convnet"),
        (ModelConfig(name="convnet"), (28, 9), "28x9 is too small for convnet"),
        (ModelConfig(name="resnet"), (7, 28), "7x28 is too small for resnet"),
        (ModelConfig(name="fast"), (28, 7), "28x7 is too small for fast; use 8 or more"),
        (ModelConfig(name="mobile"), (7, 7), "7x7 is too small for mobile; use 8 or more"),
        (ModelConfig(name="perceptron", depth=2), (28, 28), "train.model.depth: has no effect on perceptron"),
        (ModelConfig(name="perceptron", width=8), (28, 28), "train.model.width: has no effect on perceptron"),
        (ModelConfig(name="mlp", last_side=4), (28, 28), "train.model.last_side: has no effect on mlp"),
        (ModelConfig(name="convnet", last_side=4), (28, 28), "train.model.last_side: has no effect on convnet"),
        (ModelConfig(name="resnet", pool_stem=True), (28, 28), "train.model.pool_stem: has no effect on resnet"),
        (ModelConfig(name="mlp", pool_stem=True), (28, 28), "train.model.pool_stem: has no effect on mlp"),
        (
            ModelConfig(name="resnet", identity_start=True),
            (28, 28),
            "train.model.identity_start: has no effect on resnet",
        ),
        (ModelConfig(name="resnet", whiten_start=True), (28, 28), "no effect on resnet; leave it out, or choose fast"),
        (ModelConfig(name="perceptron", activation="relu"), (28, 28), "train.model.activation: has no effect on"),
    ],
)
def test_bad_requests(config: ModelConfig, size_wh: tuple[int, int], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build(config, 1, size_wh, 10)
    assert message in str(caught.value)
