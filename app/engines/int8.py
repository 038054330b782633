"""Dynamic int8 quantization: GEMMs with constant weights run in int8, everything else stays float32.

Weights are quantized here once, symmetrically, with one scale per output channel. OpenVINO quantizes activations at inference,
with one scale per group of a token's values (`GROUP_SIZE` in `openvino.py`), so an image's logits do not depend on its batch.
No calibration images are needed. On a CPU without VNNI, OpenVINO would only dequantize the weights again at every inference.
"""

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as operators

_INT8_MAX = 127


def quantize_weights(model: openvino.Model) -> None:
    """Replace every constant MatMul weight by int8 values and per-output-channel scales, in the pattern that OpenVINO fuses."""
    for matmul in model.get_ordered_ops():
        if matmul.get_type_name() != "MatMul" or matmul.input_value(1).get_node().get_type_name() != "Constant":
            continue
        weight = matmul.input_value(1).get_node().get_data()
        quantized, scales = _quantized(weight if matmul.get_attributes()["transpose_b"] else weight.T)
        dequantized = operators.multiply(operators.convert(operators.constant(quantized), "f32"), operators.constant(scales))
        replacement = operators.matmul(matmul.input_value(0), dequantized, transpose_a=False, transpose_b=True)
        matmul.output(0).replace(replacement.output(0))


def _quantized(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(outputs, inputs) float32 -> the same shape in int8, and scales (outputs, 1)."""
    scales = np.abs(weight).max(axis=1, keepdims=True) / _INT8_MAX
    scales[scales == 0] = 1
    return np.rint(weight / scales).astype(np.int8, order="C"), scales
