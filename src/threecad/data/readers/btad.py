"""BTAD (Mishra et al., ISIE 2021): good parts are called `ok`, defective ones `ko`; bmp and png are mixed.

ROOT/{01,02,03}/train/ok/NAME.bmp
                test/ok/NAME.bmp    test/ko/NAME.bmp
                ground_truth/ko/NAME.png    of the same stem, whatever the suffix
"""

from __future__ import annotations

from threecad.data.readers.tree import TreeReader

READER = TreeReader("BTAD", train="train/ok", validation="validation/ok", good="ok", marks=("train/ok", "test/ok"))
