"""Where training runs and in which precision: what was asked for, or an error; what was chosen is recorded."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from pathlib import Path

import torch

from edge_demo.errors import InputError
from stages.spec import TrainConfig

# Flags of Linux for CPUs that multiply bfloat16 in hardware (x86: AVX512-BF16 and AMX; Arm: FEAT_BF16).
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
CPUINFO = Path("/proc/cpuinfo")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3), malloc.h
KEPT_BYTES = 2**31 - 1  # the largest int, which is what mallopt takes
LARGEST_FROM_HEAP = 32 * 2**20  # M_MMAP_THRESHOLD takes no more


def choose_accelerator(config: TrainConfig) -> str:
    """`cpu` or `cuda`.

    Raises:
        InputError: a GPU was asked for and torch has none.
    """
    has_cuda = torch.cuda.is_available()
    if config.accelerator == "cuda" and not has_cuda:
        why = "this torch build has no CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise InputError(f"train.accelerator: cuda was asked for, but {why}", "set train.accelerator to auto or cpu")
    if config.accelerator == "auto":
        return "cuda" if has_cuda else "cpu"
    return config.accelerator


def choose_precision(config: TrainConfig, accelerator: str) -> str:
    """`auto` is bf16-mixed where the hardware multiplies bf16, else 32-true; anything else is taken as asked.

    Measured on one thread of an AMD EPYC with avx512_bf16 but no AMX, CPU time of a training step of 64 digits (mean
    of 60 steps, float32 and bf16): resnet 37 and 28 ms, convnet 33 and 13 ms. Not measured on Arm.

    Raises:
        InputError: 16-mixed on a CPU, which has no fp16 training.
    """
    if config.precision == "16-mixed" and accelerator == "cpu":
        raise InputError("train.precision: 16-mixed needs a GPU", "set train.precision to auto")
    if config.precision != "auto":
        return config.precision
    if accelerator == "cuda":
        # including_emulation=False: older GPUs run bf16, slower than float32
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if BF16_FLAGS & cpu_flags() else "32-true"


def keep_freed_memory() -> None:
    """Has the C library keep freed memory for the next tensor; without effect where it is not glibc.

    By default each step's activations and gradients go back to the system when they are freed and come again as fresh
    pages, every one of which is a page fault. Measured on one thread of an AMD EPYC, CPU time of a training step: 64
    digits, `fast` with `pool_stem`, 12.4 and 11.3 ms; 128 digits, the same 20.4 and 18.6 ms, resnet 39.3 and 37.4 ms.
    Holds for the whole process, until it ends. Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def check_compiler(accelerator: str) -> None:
    """Whether torch.compile has what it needs.

    Raises:
        InputError: no C++ compiler, or on a GPU no Triton.
    """
    compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if not any(name and shutil.which(name) for name in compilers):
        raise InputError(
            "train.compile: torch.compile needs a C++ compiler, and there is none", "install g++, or drop it"
        )
    if accelerator == "cuda" and importlib.util.find_spec("triton") is None:
        raise InputError("train.compile: on a GPU torch.compile needs triton, and it is not installed", "drop it")


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Instruction set flags of the first CPU; empty where the system does not list them (not Linux)."""
    if not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(flags.split())
    return frozenset()
