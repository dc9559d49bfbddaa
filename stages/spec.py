"""Every stage's Config and Result: what goes in, what comes out. pydantic and stdlib only, so `pipeline` starts fast.

A Config is one TOML section; a field's docstring is its help text. A Result is what later stages and the report get;
its paths are relative to `folder`, which the run engine sets (it is never saved).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge_demo.manifest import STRICT, Resize

RESULT = ConfigDict(extra="forbid", frozen=True)

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Split = Literal["train", "val", "test"]
RuntimeName = Literal["onnxruntime", "openvino"]
Scenario = Literal["single", "throughput", "camera", "cold", "e2e", "accuracy", "sustain"]


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of a stage, for whoever watches: `done` of `total` units, and named values (loss, accuracy, ...)."""

    what: str
    done: int = 0
    total: int = 0
    values: dict[str, float] = field(default_factory=dict)
    note: str = ""
    """A sentence for people, e.g. what was chosen by default; printed once."""


OnStep = Callable[[Step], None]


def ignore(step: Step) -> None:
    """The default `on_step`: nobody watches."""


class Gate(BaseModel):
    """A limit the run has to meet; a missed one ends the program with exit code 3."""

    model_config = RESULT
    name: str
    """e.g. `parity`, `train.min_accuracy`."""
    value: float
    limit: float
    passed: bool
    stop: bool
    """True: a missed gate ends the run after this stage; False: the run goes on and names it at the end."""
    message: str
    """One sentence: what was measured, against which limit, on what n."""


# --- data ------------------------------------------------------------------------------------------------------------


PATH_SETS = ("folder", "voc", "coco", "yolo", "labels")
"""Values of `data.name` that read `data.path`."""


class ScenesConfig(BaseModel):
    """How scenes are composed; only with `name = "scenes-detect"` or `"scenes-segment"`."""

    model_config = STRICT
    source: Literal["mnist-5k", "mnist", "fashion-mnist"] = "mnist-5k"
    """Whose pictures are the objects; training, val and test scenes share none of them."""
    objects: tuple[Positive, Positive] = (1, 6)
    """Fewest and most objects of a frame."""
    size: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.15, 0.4)
    """Smallest and largest longer side of an object, as a share of the frame's shorter side."""
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 20.0
    overlap: Fraction = 0.15
    """Largest common area of two objects' bounds, as a share of the smaller one."""
    backgrounds: str = ""
    """A folder of photos to use as grounds beside the drawn textures; a fifth of them each for val and test."""
    light: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Largest change of brightness from the middle of a frame to its edge."""
    blur: Fraction = 0.3
    """Probability of a blurred frame."""
    noise: Annotated[float, Field(ge=0, le=0.5)] = 0.06
    """Largest standard deviation of added noise, on the 0..1 scale."""
    train_frames: Positive = 4000
    val_frames: Positive = 500
    test_frames: Positive = 1000

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("objects", "size"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the first of two must not be the larger one, got {low}, {high}")
        return self


class DataConfig(BaseModel):
    """Which labelled images, at what size, split how."""

    model_config = STRICT
    name: str = "mnist-5k"
    """`mnist-5k` (embedded), `mnist`, `fashion-mnist`, `cifar10`, or `folder` (sub-folder = class, see `path`); with
    boxes or masks `voc`, `coco`, `yolo` (see `path`), or composed: `scenes-detect`, `scenes-segment`."""
    task: Literal["auto", "classify", "multilabel", "detect", "segment"] = "auto"
    """What the truth is; auto: what the set has, boxes where it has boxes and masks."""
    path: str = ""
    """The folder of your own data; only with `name` = `folder`, `voc`, `coco` or `yolo`."""
    strict: bool = False
    """Stop at any trouble in the annotations of `voc`, `coco` or `yolo`, instead of counting and leaving out."""
    scenes: ScenesConfig = ScenesConfig()
    root: str = ""
    """Where the standard sets live; empty: the environment variable PIPELINE_DATA, else a user cache."""
    test_set: str = "own"
    """Whose test split is reported: `own`, another set's name, or `auto`: the full set if it is in `root`, else own."""
    size_wh: tuple[Positive, Positive] = (28, 28)
    resize: Resize = Resize()
    colour: Literal["gray", "rgb"] = "gray"
    """What the network sees."""
    val_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.1
    """Used only where the set does not bring that split itself."""
    seed: Count = 0
    limit: Count = 0
    """Use at most this many training images (stratified); 0: all. For quick trials."""


class DataResult(BaseModel):
    """Decoded once, at network size: `<split>.frames.npy` (uint8 NHWC; C = 1 gray, 3 BGR) and the truth beside it.

    For classify the truth is `<split>.truth.npy`, int64 class ids; for multilabel `<split>.tags.npy` uint8
    (N, num_labels), 1 where the frame has the label. For detect, `<split>.boxes.npy` float32 (M, 4) xyxy in pixels of
    the network-size frame, and with int64 (M,) `box_items.npy` (index of the frame) and `box_classes.npy`,
    `box_flags.npy` uint8 (M,), bit 0 crowd (ignored in the metric), bit 1 difficult. For segment, `<split>.masks.npy`
    uint8 (N, H, W) class ids, 0 background, 255 void. Of annotated sets also `<split>.original_wh.npy` int64 (N, 2):
    with `resize` it maps boxes back to the source. `items.json` lists every item's id and content hash.
    """

    model_config = RESULT
    folder: Path = Field(default=Path(), exclude=True)
    name: str
    task: str
    labels: tuple[str, ...]
    size_wh: tuple[int, int]
    resize: Resize
    colour: Literal["gray", "rgb"]
    composed: bool = False
    """True for data put together by the program; reports must say so."""
    scenes: ScenesConfig | None = None
    """How it was composed; None for data that is not."""
    counts: dict[str, int]
    """Items per split."""
    class_counts: dict[str, tuple[int, ...]]
    """split -> items per class, in the order of `labels`; for detect boxes, for segment frames that show the class."""
    digests: dict[str, str]
    """split -> sha256 over frames and truth."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per network channel (gray: 1; rgb: R, G, B) on the 0..1 scale: what is subtracted, and what divides the rest."""
    centre: tuple[float, ...] = ()
    """Mean of the training frames after that; empty: 0 in every channel."""
    dropped: dict[str, int]
    """Reason -> how many items were left out, e.g. `duplicate of train`."""
    notes: tuple[str, ...] = ()
    """What was chosen by default, in sentences."""


# --- train -----------------------------------------------------------------------------------------------------------


class ModelConfig(BaseModel):
    """Which network, and its dials; one that the network does not have is refused."""

    model_config = STRICT
    name: str = "resnet"
    """Key of `stages.models.MODELS`."""
    depth: Positive = 1
    width: Positive = 16
    activation: Literal["auto", "relu", "relu6", "silu", "hardswish"] = "auto"
    """auto: the network's own, relu6 for `mobile`, relu elsewhere. silu and hardswish do not fuse into INT8 layers."""
    dropout: Fraction = 0.0
    last_side: Positive = 8
    """Stages, each with twice the channels, halve the picture until its longer side is at most this."""
    pool_stem: bool = False
    """The stem takes the place of the first stage and pools: no other convolution sees half the side, where most of
    the computation is."""
    channels: tuple[Positive, ...] = ()
    """Channels layer by layer, in place of those that follow from `width`, as pruning leaves them; empty: those."""
    identity_start: bool = False
    """Convolutions behind the stem first hand on what they get, and learn from there; worth most in few epochs."""
    whiten_start: bool = False
    """The first convolution starts with the principal directions of the training pictures' patches."""


class AugmentConfig(BaseModel):
    """Random changes of a training batch, on the device, seeded. 0 switches each one off."""

    model_config = STRICT
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest shift, as a share of the side; by whole pixels, which is cheaper, where nothing else resamples."""
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shear: Annotated[float, Field(ge=0, lt=1)] = 0.0
    crop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest share of the area that is cut away before the rest is brought to full size."""
    elastic: Annotated[float, Field(ge=0, le=0.2)] = 0.0
    """Standard deviation of smooth elastic displacements, as a share of the side."""
    flip: Fraction = 0.0
    """Probability of a left-right flip."""
    flip_in_turn: bool = False
    """With flip = 0.5: each picture is mirrored in every other epoch, instead of by chance."""
    flip_vertical: Fraction = 0.0
    """Probability of an upside-down flip."""
    quarter_turns: Fraction = 0.0
    """Probability of a turn by one, two or three right angles; where nothing says which way is up. A frame that is not
    square is stretched by it."""
    mosaic: Fraction = 0.0
    """Probability of a picture put together from parts of four; for boxes and masks only."""
    invert: Fraction = 0.0
    """Probability of inverting light and dark."""
    contrast: Fraction = 0.0
    """Largest change of contrast and brightness."""
    colour: Fraction = 0.0
    """Largest change of hue (1: half a turn), saturation and brightness; for sets in colour only."""
    blur: Fraction = 0.0
    """Probability of a 3x3 blur."""
    noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest standard deviation of added noise, on the 0..1 scale."""
    cutout: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Side of a blanked square, as a share of the picture's side."""
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Blends pairs of pictures and their labels, in shares from Beta(mixup, mixup); 0.2 is usual."""
    cutmix: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Puts a part of one picture into another, in shares from Beta(cutmix, cutmix); 1 is usual. With mixup, a coin
    decides."""
    policy: Annotated[int, Field(ge=0, le=8)] = 0
    """How many of the changes above, drawn anew for each picture, come on top (RandAugment); 2 is usual."""
    policy_magnitude: Fraction = 0.0
    """How strong those are; set both or neither."""

    @model_validator(mode="after")
    def _policy_is_whole(self) -> Self:
        if self.flip_in_turn and self.flip != 0.5:
            raise ValueError("flip_in_turn mirrors each picture half of the time; set flip to 0.5")
        if bool(self.policy) != bool(self.policy_magnitude):
            raise ValueError("policy and policy_magnitude have no effect without each other; set both or neither")
        return self


class TrainConfig(BaseModel):
    """Model, optimizer, schedule, regularization."""

    model_config = STRICT
    task: str = "classify"
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    init_from: str = ""
    """Folder of another run, whose trained body this one starts with where names and shapes are the same; empty: from
    scratch. A `fast` classifier with `pool_stem` lends its body to `detector`."""
    epochs: Positive = 12
    batch_size: Count = 64
    """Pictures of one pass. 0, on a GPU only: the largest power of two that fits."""
    accumulate: Positive = 1
    """Passes of one optimizer step, which so sees `batch_size` x `accumulate` pictures."""
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "adagrad", "adadelta", "muon"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    """Of matrices and kernels. Decoupled with adamw and muon, an L2 penalty with the others."""
    l1: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the sum of absolute values of matrices and kernels, added to the loss; 0: none."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Gradients are scaled down to at most this norm over all weights together; 0: never."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of a moving average of the weights, e.g. 0.99; the average is what is measured and kept."""
    schedule: Literal["constant", "one-cycle", "cosine", "step"] = "one-cycle"
    loss: Literal["cross-entropy", "binary"] = "cross-entropy"
    """binary: a yes or no for each class on its own (one-vs-all)."""
    teacher: str = ""
    """A run folder whose network this one learns from, beside the labels (distillation); empty: none."""
    teacher_weight: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the teacher in the loss; the rest is the labels'."""
    teacher_temperature: Annotated[float, Field(gt=0)] = 4.0
    """Both networks' logits are divided by it; higher shows more of what the teacher thinks of the wrong classes."""
    prune: str = ""
    """A run folder whose network this training starts from, its least important channels removed; empty: none."""
    prune_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Smallest share of its multiply-accumulates to remove."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a picture weighs in the loss by how rare its class is; all classes count alike."""
    label_smoothing: Fraction = 0.0
    patience: Count = 0
    """Early stop after this many epochs without a better val metric; 0: never."""
    min_accuracy: Fraction = 0.0
    """Gate on val accuracy; 0: none. Missing it ends the run with exit code 3."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """auto: bf16-mixed where the hardware multiplies bf16 natively, else 32-true; what was chosen is recorded."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    """torch.compile: needs a C++ compiler; takes half a minute to begin with, so it pays only in long trainings."""
    resident_mb: Count = 0
    """A split whose frames are larger than this stays on disk and is streamed from there, to the same weights; 0: half
    of the memory that is free on the device, or in its container."""
    threads: Positive = 1
    """CPU threads; more than one pays only on an idle machine."""
    devices: Positive = 1
    """Processes that train together, each on its GPU or with its `threads`; they share out `batch_size`. Under torchrun
    the number of its processes."""
    seed: Count = 0
    track: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    """Also write the curves for these programs, into the stage's folder; each needs the extra of its name."""


class Generalization(BaseModel):
    """How far training and val are apart, and what follows from it."""

    model_config = RESULT
    kind: Literal["fine", "undecided", "overfitting", "underfitting"]
    gap: float
    """train - val, as shares."""
    ci95: tuple[float, float]
    n_train: int
    n_val: int
    val_ci95: tuple[float, float]
    """95 % interval of the metric on val."""
    advice: tuple[str, ...]
    """What to try, as `section.key=value`."""
    sentence: str


class TrainResult(BaseModel):
    """The best checkpoint (`weights`), how it came about, and what it scores on val."""

    model_config = RESULT
    folder: Path = Field(default=Path(), exclude=True)
    task: str
    model: ModelConfig
    labels: tuple[str, ...]
    in_channels: int
    size_wh: tuple[int, int]
    weights: str = "best.safetensors"
    curves_csv: str = "curves.csv"
    curves_png: str = "curves.png"
    config_json: str = "config.json"
    """The `train` section as used."""
    val_png: str = ""
    """`val.png`: confusion, reliability and surest mistakes on val; empty where answers are not one class each."""
    metric: str
    """Name of the task's leading metric, e.g. `accuracy`."""
    val: float
    train: float
    """The metric on (a sample of) the training split, without augmentation: the generalization gap is train - val."""
    best_epoch: int
    epochs: int
    parameters: int
    macs: int
    seconds: float
    cpu_seconds: float
    precision: str
    accelerator: str
    batch_size: int = 0
    """Pictures of one pass at the end: what was set, found (`batch_size = 0`), or left after running out of memory."""
    accumulate: int = 1
    recoveries: int = 0
    """How often a NaN or infinite step was undone; each is in `notes`."""
    resumed_from_step: int = 0
    sources: dict[str, str] = {}
    """`train.teacher` and `train.prune`, where set -> sha256 of the weights that were read."""
    notes: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    generalization: Generalization | None = None
    """None: nobody judged it; the stage always does."""


# --- export ----------------------------------------------------------------------------------------------------------


class ExportConfig(BaseModel):
    """torch to ONNX, with preprocessing inside the graph, and the parity that must hold."""

    model_config = STRICT
    opset: Positive = 20
    parity_images: Positive = 256
    max_abs: Annotated[float, Field(gt=0)] = 1e-4
    """Largest allowed difference of logits, relative to the largest logit, torch against each runtime."""


class ParityRow(BaseModel):
    """One rung of the parity ladder: two ways to compute the same thing on the same images."""

    model_config = RESULT
    name: str
    """e.g. `torch -> onnxruntime`."""
    n: int
    max_abs: float
    max_rel: float
    agreement: float
    """Share of images with the same decoded answer."""
    tolerance: float
    passed: bool
    required: bool = True
    """False: shown, but not part of the gate (a runtime's own choice of a lower precision, which never ships)."""


class ExportResult(BaseModel):
    """The bare network (`core`: float32 NCHW batch -> logits, ...), pre and post graphs, and the composed `model`."""

    model_config = RESULT
    folder: Path = Field(default=Path(), exclude=True)
    core: str = "core.onnx"
    pre: str = "pre.onnx"
    post: str = "post.onnx"
    model: str = "model.fp32.onnx"
    opset: int
    size_bytes: int
    parity: tuple[ParityRow, ...]
    gates: tuple[Gate, ...] = ()


# --- quantize --------------------------------------------------------------------------------------------------------


class QuantizeConfig(BaseModel):
    """INT8 for both runtimes: a search over recipes, calibrated on training images, judged on val."""

    model_config = STRICT
    images: Positive = 256
    """Calibration images, stratified, from train."""
    search: Literal["quick", "thorough"] = "quick"
    """quick: recipes from the cheapest on, the first that holds its accuracy and is faster than FP32; thorough: all of
    them, the fastest of those."""
    target: Literal["auto", "x86-vnni", "x86-avx2", "arm64"] = "auto"
    """Whose integer instructions the file is made for; auto: this machine's. x86-avx2 has 7-bit weights, because its
    16-bit sums would saturate. Where it is not this machine's, speed is not judged here: bench does that there."""
    max_drop: Annotated[float, Field(ge=0)] = 0.003
    """Largest allowed drop of the metric on val, FP32 minus INT8, in either runtime. On a small val one item is worth
    more than that, so up to twice as much passes while the exact McNemar test on the same items gives chance a p above
    0.05; drop, counts and p are recorded, and `evaluate.max_int8_drop` on test knows no such allowance.
    Beyond: FP32 is recommended."""
    required: bool = False
    """True: a drop beyond `max_drop` ends the run with exit code 3 instead of recommending FP32."""
    seed: Count = 0


class Candidate(BaseModel):
    """One recipe of the search, measured from its saved file; FP32 itself is the first row."""

    model_config = RESULT
    name: str
    metric: dict[str, float] = {}
    """runtime -> metric on val; empty where the recipe could not be measured, or there are no labels."""
    ci95: dict[str, tuple[float, float]] = {}
    """runtime -> 95 % interval of it: Wilson for shares, else bootstrap."""
    paired: dict[str, tuple[int, int]] = {}
    """runtime -> (FP32 right and this wrong, FP32 wrong and this right), in items."""
    p_value: dict[str, float] = {}
    """runtime -> exact McNemar test of those two counts."""
    agreement: dict[str, float] = {}
    """runtime -> share of items with the same decoded answer as FP32."""
    sqnr_db: float | None = None
    """Signal to quantization noise of the raw outputs, the worse runtime."""
    fused: dict[str, str] = {}
    """runtime -> e.g. `6 of 6 convolutions INT8`."""
    size_bytes: int = 0
    speed: dict[str, tuple[float, float, float]] = {}
    """runtime -> CPU time of one FP32 inference over that of this file, batch 1, one thread: median and 95 % interval
    over alternating rounds; > 1 is faster."""
    rounds: int = 0
    verdict: Literal["chosen", "rejected", "not needed", "reference"]
    reason: str
    """One sentence."""


class LayerRow(BaseModel):
    """How much of the output's accuracy one node costs when it alone is in INT8."""

    model_config = RESULT
    node: str
    operator: str
    sqnr_db: float


class QuantizeResult(BaseModel):
    """One INT8 file for both runtimes, re-measured from disk: the chosen candidate, or the best one that was rejected.

    The figures are that file's; `chosen` says whether it is worth shipping.
    """

    model_config = RESULT
    folder: Path = Field(default=Path(), exclude=True)
    core: str = "core.int8.onnx"
    """From `frames` to the raw outputs."""
    model: str = "model.int8.onnx"
    metric: str
    val_fp32: dict[str, float]
    val_int8: dict[str, float]
    """runtime -> metric on val, from the saved files."""
    n: int = 0
    """Size of val: one item is worth 1 / n of the metric."""
    paired: dict[str, tuple[int, int]] = {}
    """runtime -> (FP32 right and INT8 wrong, FP32 wrong and INT8 right), in items."""
    drop: float
    """Worst over the runtimes, FP32 minus INT8; negative when INT8 is better."""
    max_drop: float
    passed: bool
    """Whether the drop is allowed by `quantize.max_drop`; speed is not part of it."""
    sqnr_db: float
    agreement: dict[str, float]
    """runtime -> share of val images with the same decoded answer as FP32."""
    fused: dict[str, str]
    """runtime -> e.g. `6 of 6 convolutions INT8`."""
    size_bytes: int
    calibration: dict[str, Any]
    """n, digest, mean, std of what the calibrator saw, and what training saw."""
    search: str = "quick"
    target: str = ""
    """What the file is made for, never `auto`."""
    chosen: str = ""
    """Name of the chosen candidate; `FP32` when none is worth shipping."""
    reason: str = ""
    """The choice in one sentence."""
    candidates: tuple[Candidate, ...] = ()
    sensitivity: tuple[LayerRow, ...] = ()
    """Worst first."""
    gates: tuple[Gate, ...] = ()


# --- evaluate --------------------------------------------------------------------------------------------------------


class EvaluateConfig(BaseModel):
    """The whole test split, once, on everything that could ship."""

    model_config = STRICT
    min_accuracy: Fraction = 0.0
    """Gate on the test metric of the recommended precision in every runtime; 0: none. Missing it: exit code 3."""
    max_int8_drop: Annotated[float, Field(ge=0)] = 0.003
    """Beyond this drop on test the recommendation is FP32, with the reason."""


class EvaluateRow(BaseModel):
    """One engine on the whole test split."""

    model_config = RESULT
    runtime: str
    """`torch`, `onnxruntime` or `openvino`."""
    precision: Literal["fp32", "int8"]
    n: int
    metrics: dict[str, float]
    ci95: tuple[float, float]
    """95 % Wilson interval of the leading metric (for shares), else bootstrap."""
    agreement: float
    """Share of test images with the same decoded answer as torch FP32."""
    max_abs_logits: float
    """Largest absolute difference of logits (task-specific raw outputs) to torch FP32."""


class EvaluateResult(BaseModel):
    """Test metrics per runtime and precision; `predictions.npz` holds ids, truth and answers for the report."""

    model_config = RESULT
    folder: Path = Field(default=Path(), exclude=True)
    metric: str
    rows: tuple[EvaluateRow, ...]
    int8_drop: dict[str, float]
    """runtime -> FP32 minus INT8 on test."""
    recommended: Literal["fp32", "int8"]
    reason: str
    predictions: str = "predictions.npz"
    """Of what is recommended, in ONNX Runtime: `ids`, `quality` (0..1 per item), and the task's own arrays (classify:
    `truth`, `answer`, `score`)."""
    gates: tuple[Gate, ...] = ()


# --- bundle ----------------------------------------------------------------------------------------------------------


class BundleConfig(BaseModel):
    """What ships."""

    model_config = STRICT
    name: str = ""
    """Empty: the run's name."""
    version: str = "1.0.0"
    golden: Positive = 4
    eval_images: Positive = 1000
    """Size of the labelled sample, stratified, from test."""
    decode: dict[str, Any] = {}
    """The task's decode parameters; for classify `roi`: side of the square read from a live frame, as a share of its
    short side."""
    licence: str = "unstated"
    data_licence: str = "unstated"


class BundleResult(BaseModel):
    """The bundle is the stage's folder itself."""

    model_config = RESULT
    folder: Path = Field(default=Path(), exclude=True)
    name: str
    manifest_sha256: str
    size_bytes: int


# --- bench -----------------------------------------------------------------------------------------------------------


class BenchConfig(BaseModel):
    """FPS and accuracy of every variant on this host."""

    model_config = STRICT
    runtimes: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
    precisions: tuple[Literal["fp32", "bf16", "f16", "int8"], ...] = ("fp32", "int8")
    threads: tuple[Positive, ...] = (1,)
    """CPU threads of one inference; `throughput` always uses every usable CPU."""
    scenarios: Annotated[tuple[Scenario, ...], Field(min_length=1)] = ("single",)
    """`single` one inference after the other, `throughput` as many at a time as pays, `camera` one per frame at `fps`,
    `cold` from process start to the first answer, `e2e` JPEG to decoded result, `accuracy` the labelled sample and no
    speed, `sustain` the same as `single` for `minutes`."""
    fps: Annotated[float, Field(gt=0)] = 30.0
    """Frame rate of the `camera` scenario."""
    minutes: Annotated[float, Field(gt=0)] = 10.0
    """How long `sustain` runs each variant."""
    shapes: tuple[str, ...] = ()
    """Input shapes of plain models: `NAME=1x3x224x224`, or `1x3x224x224` where there is one input."""
    spinning: bool = False
    """Let idle threads of ONNX Runtime burn CPU while they wait; OpenVINO has no such switch."""
    preset: Literal["quick", "standard", "thorough"] = "quick"
    seed: Count = 0


class BenchRow(BaseModel):
    """What the report and the console show of one variant; the whole truth is in `bench.json`."""

    model_config = RESULT
    id: str
    runtime: str
    precision: str
    effective: str
    threads: int
    fps: float | None
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    ratio: tuple[float, float, float] | None
    """Speed against the baseline row: median and 95 % interval; > 1 is faster."""
    accuracy: float | None
    load_ms: float | None
    first_ms: float | None
    rss_mb: float | None
    size_mb: float
    status: str
    """failed, or how quiet the host was while this row was measured: clean | noisy | drifting | contended |
    throttled."""
    reason: str = ""
    """Why it failed, or why `fps` is None."""
    scenario: Scenario = "single"
    fps_uncontended_est: float | None = None
    """Estimate from CPU time, for one thread on a quiet host; to be shown as `~N (CPU time)` when `fps` is None."""


class BenchResult(BaseModel):
    """`bench.json` (schema `pipeline.bench/1`) and its summary."""

    model_config = RESULT
    folder: Path = Field(default=Path(), exclude=True)
    file: str = "bench.json"
    baseline: str
    rows: tuple[BenchRow, ...]
    recommended: str
    reason: str
    status: str
    """clean | noisy | contended | ...: how far to trust the times."""
    gates: tuple[Gate, ...] = ()


# --- report ----------------------------------------------------------------------------------------------------------


class ReportConfig(BaseModel):
    """What the report shows."""

    model_config = STRICT
    title: str = ""
    samples: Positive = 24
    """Sample predictions, mistakes first."""


class ReportResult(BaseModel):
    """The files people read."""

    model_config = RESULT
    folder: Path = Field(default=Path(), exclude=True)
    html: str = "report.html"
    markdown: str = "report.md"
    json_file: str = "report.json"


# --- sweep -----------------------------------------------------------------------------------------------------------

Objective = Literal["val", "latency_ms"]


class SweepConfig(BaseModel):
    """Which config keys to try which values of, and what for; read by `pipeline sweep` only."""

    model_config = STRICT
    trials: Positive = 30
    """How many, over all processes that share the storage and all earlier commands."""
    timeout_s: Annotated[float, Field(ge=0)] = 0.0
    """No trial begins later than that after the command's start; 0: no limit."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = ("val",)
    """`val`: the leading metric on val, higher is better. With `latency_ms`, the median time of one INT8 inference on
    this host, lower is better, `val` is that of the very INT8 file, and the result is a Pareto front."""
    seed: Count = 0
    """Of the sampler; what a trial trains with is `train.seed`."""
    space: dict[str, Any] = {}
    """Config key -> a list of choices, or `{low = 1e-4, high = 3e-2, log = true}`, or `{low = 8, high = 32, step = 8}`.
    """
