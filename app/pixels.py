"""Array types that decoding, engines and serving hand each other."""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""One decoded image: (C, H, W) uint8, RGB, resized and cropped."""

Logits = NDArray[np.float32]
"""Outputs of a batch: (B, K) float32, in the order of the images and of the classes."""
