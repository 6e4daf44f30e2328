"""What is unusual among good parts, and what follows: shares, thresholds with a stated bound, verdicts, regions.

Good parts' scores in (`good.py`), budgets in (`settings.py`); thresholds by rank out (`bounds.py`), and with them OK,
REVIEW or NG (`decide.py`) and the areas that good parts do not have (`areas.py`). `files.py` keeps `good.json` and
`verdict.toml`; `looks.py` notices images that cannot show a part; `plot.py` draws scores and thresholds. Nothing here
knows of networks.
"""

from __future__ import annotations

from threecad.verdicts.areas import AREAS_PX, Region, area_peaks, regions
from threecad.verdicts.bounds import (
    FEWEST_PARTS,
    Budget,
    Interval,
    Limit,
    limit,
    parts_needed,
    promised_shares,
    share_of,
)
from threecad.verdicts.decide import (
    Escapes,
    Judged,
    Kept,
    Limits,
    Verdict,
    Verdicts,
    Word,
    confidence_words,
    per_cent,
    promise,
    with_interval,
)
from threecad.verdicts.files import BUDGETS, read_verdicts, write_budgets, write_verdicts
from threecad.verdicts.good import (
    Conditions,
    GoodPart,
    GoodScores,
    good_share,
    image_name,
    joined_parts,
    other_conditions,
    refuse_other_conditions,
    smallest_share,
)
from threecad.verdicts.looks import GoodLooks, Look, look, plausible
from threecad.verdicts.lots import UNLIKE, Lot, Lots, compare_lots, score_alike
from threecad.verdicts.plot import scores_plot
from threecad.verdicts.settings import VerdictSettings, read_verdict, write_verdict

__all__ = [
    "AREAS_PX",
    "BUDGETS",
    "FEWEST_PARTS",
    "UNLIKE",
    "Budget",
    "Conditions",
    "Escapes",
    "GoodLooks",
    "GoodPart",
    "GoodScores",
    "Interval",
    "Judged",
    "Kept",
    "Limit",
    "Limits",
    "Look",
    "Lot",
    "Lots",
    "Region",
    "Verdict",
    "VerdictSettings",
    "Verdicts",
    "Word",
    "area_peaks",
    "compare_lots",
    "confidence_words",
    "good_share",
    "image_name",
    "joined_parts",
    "limit",
    "look",
    "other_conditions",
    "parts_needed",
    "per_cent",
    "plausible",
    "promise",
    "promised_shares",
    "read_verdict",
    "read_verdicts",
    "refuse_other_conditions",
    "regions",
    "score_alike",
    "scores_plot",
    "share_of",
    "smallest_share",
    "with_interval",
    "write_budgets",
    "write_verdict",
    "write_verdicts",
]
