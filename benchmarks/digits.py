"""The default preset over three seeds: `python benchmarks/digits.py [--seeds K] [--data DIR] [--out FILE.json]`.

Trains on the embedded 5,000 digits; with MNIST in `--data` (or PIPELINE_DATA) it is scored on the 10,000 MNIST test
digits. What is measured, and how, is in `presets.py`.
"""

from __future__ import annotations

import presets

if __name__ == "__main__":
    presets.main(("digits",), 3)
