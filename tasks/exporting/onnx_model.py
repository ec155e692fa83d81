"""Export to ONNX: one file that onnxruntime runs without PyTorch."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.errors import InputError, first_line
from tasks.exporting.deployable import OUTPUTS, ModelInput

FILE = "model.onnx"
# Since onnxruntime 1.14.
OPSET = 18


def write_onnx(
    program: Any, inputs: Sequence[ModelInput], metadata: Mapping[str, Any], file: Path, arch: str
) -> None:
    """Write a recorded graph as ONNX, with metadata.

    Args:
        program: A `torch.export.ExportedProgram`.
        inputs: The inputs of the graph.
        metadata: Plain data; each value becomes text, as JSON where it is no text already.
        file: The file.
        arch: The model in errors.

    Raises:
        InputError: ONNX has no operation for one of the graph's.
    """
    import onnx

    loud = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx", "onnx_ir")]
    levels = [one.level for one in loud]
    try:
        for one in loud:
            one.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[one.name for one in inputs],
                output_names=OUTPUTS,
                opset_version=OPSET,
            )
    except Exception as error:
        cause = first_line(error.__cause__ or error)
        raise InputError(
            f"model.arch={arch} cannot be exported to ONNX ({cause}); use FORMAT=pt2"
        ) from error
    finally:
        for one, level in zip(loud, levels, strict=True):
            one.setLevel(level)
    assert exported is not None
    model = exported.model_proto
    _name_dimensions(model, inputs)
    onnx.helper.set_model_props(
        model,
        {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in metadata.items()
        },
    )
    onnx.save(model, file)
    onnx.checker.check_model(file, full_check=True)


def _name_dimensions(model: Any, inputs: Sequence[ModelInput]) -> None:
    """Replace PyTorch's names of the dimensions of any size, such as `s77`, by ours."""
    names = {}
    for value, one in zip(model.graph.input, inputs, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, one.shape, strict=True):
            if isinstance(size, str):
                names[dim.dim_param] = size
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
    # The shapes inside are computed from the old names; onnxruntime infers them again.
    del model.graph.value_info[:]


class OnnxModel:
    """An ONNX file, run by onnxruntime on the CPU.

    Args:
        file: The file.
    """

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )
        self.names = [one.name for one in self.session.get_inputs()]

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Return the logits (batch, classes)."""
        arrays = [np.ascontiguousarray(one.numpy()) for one in arguments]
        outputs: Any = self.session.run(["logits"], dict(zip(self.names, arrays, strict=True)))
        return torch.from_numpy(outputs[0])
