"""MVTec AD 2 (Heckler-Kram et al., 2025): the public test images, with the masks beside them.

    ROOT/CATEGORY/train/good/NAME.png          validation/good/NAME.png
                  test_public/good/NAME.png    test_public/bad/NAME.png
                  test_public/ground_truth/bad/NAME_mask.png

`test_private` and `test_private_mixed` are not labelled: they can be predicted, not evaluated.
"""

from __future__ import annotations

from threecad.data.readers.tree import TreeReader

READER = TreeReader("MVTec AD 2", test="test_public", ground_truth="test_public/ground_truth", marks=("test_public",))
