"""int8 for OpenVINO: products with weights are of whole numbers, all that is between them stays float32.

Weights are rounded here, once, with a scale for each output. What they are multiplied by is rounded by OpenVINO as it runs,
with a scale for every `GROUP_SIZE` values of a token: no image's answer depends on its neighbours in the batch. Neither needs
pictures to calibrate by. On a CPU without VNNI, OpenVINO would only turn the weights back into float32, at every run.
"""

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as operators

GROUP_SIZE = 64
"""Values with one scale. Published ViTs' widths are multiples of it; fewer are more exact, more are faster."""

_LARGEST = 127


def round_weights(model: openvino.Model) -> None:
    """Make each constant matrix whole numbers times scales, in the form that OpenVINO takes into the product itself."""
    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul" or product.input_value(1).get_node().get_type_name() != "Constant":
            continue
        matrix = product.input_value(1).get_node().get_data()
        rounded, scales = _rounded(matrix if product.get_attributes()["transpose_b"] else matrix.T)
        weights = operators.multiply(operators.convert(operators.constant(rounded), "f32"), operators.constant(scales))
        smaller = operators.matmul(product.input_value(0), weights, transpose_a=False, transpose_b=True)
        product.output(0).replace(smaller.output(0))


def _rounded(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(outputs, inputs) -> whole numbers of the same shape, and the scales (outputs, 1) that they are to be multiplied by."""
    scales = np.abs(weights).max(axis=1, keepdims=True) / _LARGEST
    scales[scales == 0] = 1
    return np.rint(weights / scales).astype(np.int8, order="C"), scales
