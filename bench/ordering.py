"""Whether methods rank on some parts as they do in the paper: Kendall's τ with its means over 3CAD (Tables 3 and 4).

    python bench/ordering.py FOLDER

τ is 1 for the same order, 0 for none of it, -1 for the reverse; the methods of both are compared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

from scipy.stats import kendalltau

from threecad.benchmark.paper import means
from threecad.benchmark.rows import Row, read_rows

METRICS = {"i_auroc": "I-AUROC", "p_auroc": "P-AUROC", "p_pro_per_image": "P-PRO per image", "p_ap": "AP"}


def main() -> None:
    print("\n".join(table(Path(sys.argv[1]))))


def table(folder: Path) -> Iterator[str]:
    """τ a metric and set, then of the means over all sets, in Markdown."""
    rows = read_rows([folder])
    categories = sorted({row.category for row in rows})
    yield f"| metric | methods | {' | '.join(categories)} | mean |"
    yield "| --- | ---: |" + " ---: |" * (len(categories) + 1)
    for metric, title in METRICS.items():
        printed = {method: score for (data, method, name), score in means().items() if (data, name) == ("3cad", metric)}
        taken = [row for row in rows if row.method in printed]
        cells = [agreement([row for row in taken if row.category == name], metric, printed) for name in categories]
        cells.append(agreement(taken, metric, printed))
        yield f"| {title} | {len({row.method for row in taken})} | {' | '.join(f'{cell:.2f}' for cell in cells)} |"


def agreement(rows: Sequence[Row], metric: str, printed: Mapping[str, float]) -> float:
    """τ of the printed values with each method's mean over the rows."""
    methods = sorted({row.method for row in rows})
    found = [mean(row.scores[metric] for row in rows if row.method == method) for method in methods]
    return float(kendalltau(found, [printed[method] for method in methods]).statistic)


if __name__ == "__main__":
    main()
