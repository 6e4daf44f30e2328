"""Prints how much the image AUROC of a fitted run changes with the precision that it predicts in.

python bench/precision.py RUN --data ROOT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from threecad.checkpoint import load_detector
from threecad.data.loading import load_images
from threecad.data.readers import read_category
from threecad.inference import predict
from threecad.metrics import image_scores
from threecad.runs import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="run folder of one category")
    parser.add_argument("--data", type=Path, required=True, help="data root with test images")
    options = parser.parse_args()
    print("| method | category | I-AUROC in float32 | in bf16 | difference |")
    print("|---|---|---:|---:|---:|")
    for run in options.run:
        detector, record = load_detector(RunFolder(run))
        category = record.categories[0]
        samples = read_category(options.data, category).test
        pixels = load_images(samples, detector.config.image_size)
        defective = np.array([sample.is_defect for sample in samples])
        exact, rough = (
            image_scores(np.array([seen.score for seen in predict(detector, pixels, precision)]), defective).i_auroc
            for precision in ("float32", "bf16")
        )
        print(f"| {record.method} | {category} | {exact:.4f} | {rough:.4f} | {rough - exact:+.4f} |", flush=True)


if __name__ == "__main__":
    main()
