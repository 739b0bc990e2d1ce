"""The UCI handwritten digits: 1,797 grey pictures of 8x8 in 10 classes, carried by the package (45 kB).

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998, https://doi.org/10.24432/C50P49, licensed under CC BY 4.0. `digits.npz` holds the part of it that scikit-learn's
`load_digits` gives (UCI's test part, 13 writers), in the same order and values 0..16 as uint8; nothing is left out.

The split is ours, as UCI's training part is not here: sort the samples by class, keeping their order inside a class,
and take every fifth from the first on for the test: 1,437 + 360, and 35 to 37 test samples a class. As in every
random split of these samples a writer has pictures on both sides.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("digits.npz")


def read(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (N, 1, 8, 8), their 0..16 stretched to 0..255, and labels (N,), in UCI's order."""
    with np.load(FILE, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    test[np.argsort(labels, kind="stable")[::5]] = True
    chosen = test if split == "test" else ~test
    stretched = np.rint(images[chosen] * (255 / 16)).astype(np.uint8)
    return stretched[:, None], labels[chosen]
