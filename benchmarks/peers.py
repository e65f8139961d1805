"""What else makes a trained model faster on a CPU: each in the form its own documentation shows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import openvino
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from rankc.optimizer.data.rows import Rows
from rankc.optimizer.ir.structure import Structure
from rankc.optimizer.ir.torchapi import silenced
from structure import Arrays, Scorer, onnxruntime_scorer, openvino_scorer
from torch import Tensor, nn

#: Operators that NNCF's accuracy control may undo, and batches it ranks them on: with its defaults
#: it takes a quarter of an hour for a DHEN.
_ITERATIONS, _RANKED = 12, 8


class UnavailableError(Exception):
    """A peer that doesn't take the model; its own words."""


@dataclass(frozen=True)
class Calibration:
    """What a peer is given.

    Attributes:
        model: Trained, in eval mode.
        path: As torch.onnx writes it.
        structure: How its inputs are nested.
        features: The rows that calibrate, as batches.
        choice: Labelled rows on which a peer may choose what to quantize.
        limit: The relative rise of NE that it may choose to lose.
    """

    model: nn.Module
    path: Path
    structure: Structure
    features: Sequence[Mapping[str, Tensor]]
    choice: Rows
    limit: float

    def scratch(self, name: str) -> Path:
        """A file beside the model."""
        return self.path.with_name(name)

    def arguments(self, features: Mapping[str, Tensor]) -> Mapping[str, object]:
        """What the model is called with."""
        found: Mapping[str, object] = self.structure.unflatten(features)
        return found


class _Reader(CalibrationDataReader):
    """Batches under the names that the file's inputs have."""

    def __init__(self, given: Calibration) -> None:
        graph = onnx.load(given.path, load_external_data=False).graph
        self._names = [value.name for value in graph.input]
        self._batches: Iterator[Mapping[str, Tensor]] = iter(given.features)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        return {n: v.numpy() for n, v in zip(self._names, batch.values(), strict=True)}


def _dynamic(given: Calibration) -> Scorer:
    path = given.scratch("dynamic.onnx")
    quantize_dynamic(given.path, path, weight_type=QuantType.QInt8, per_channel=True)
    return onnxruntime_scorer(path)


def _static(method: CalibrationMethod, given: Calibration) -> Scorer:
    ready, path = given.scratch("ready.onnx"), given.scratch(f"{method.name}.onnx")
    try:
        quant_pre_process(str(given.path), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(path),
            _Reader(given),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=method,
        )
        return onnxruntime_scorer(path)
    except Exception as error:  # whatever the library raises is what the table says
        raise UnavailableError(_first_line(error)) from error


def _nncf(given: Calibration) -> Scorer:
    try:
        import nncf

        model = openvino.Core().read_model(given.path)
        batches = [[v.numpy() for v in batch.values()] for batch in given.features]
        coded = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))
        path = given.scratch("nncf.xml")
        openvino.save_model(coded, path, compress_to_fp16=False)
        return openvino_scorer(path)
    except Exception as error:
        raise UnavailableError(_first_line(error)) from error


def _nncf_controlled(given: Calibration) -> Scorer:
    """Quantized, then undone operator by operator until the loss on the choice rows is kept."""
    try:
        import nncf

        chunks = [
            given.choice.part(start, start + 512)
            for start in range(0, len(given.choice) // 512 * 512, 512)
        ]
        batches = [[v.numpy() for v in part.features.values()] for part in chunks]
        labels = [torch.from_numpy(np.stack([*(part.labels or {}).values()])) for part in chunks]

        def score(model: openvino.CompiledModel, _: object) -> tuple[float, list[float]]:
            lost = []
            for batch, label in zip(batches, labels, strict=True):
                found = model(batch)
                logits = torch.stack([torch.from_numpy(found[o]) for o in model.outputs])
                lost.append(
                    nn.functional.binary_cross_entropy_with_logits(logits.double(), label).item()
                )
            return -sum(lost) / len(lost), [-loss for loss in lost]

        core = openvino.Core()
        model = core.read_model(given.path)
        plain, _ = score(core.compile_model(model, "CPU"), None)
        calibration = [[v.numpy() for v in batch.values()] for batch in given.features]
        coded = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(calibration),
            nncf.Dataset(batches),
            score,
            max_drop=-plain * given.limit,
            drop_type=nncf.DropType.ABSOLUTE,
            subset_size=len(calibration),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                max_num_iterations=_ITERATIONS, ranking_subset_size=_RANKED
            ),
        )
        path = given.scratch("controlled.xml")
        openvino.save_model(coded, path, compress_to_fp16=False)
        return openvino_scorer(path)
    except Exception as error:
        raise UnavailableError(_first_line(error)) from error


def _compiled(model: nn.Module, given: Calibration, *, half: bool = False) -> Scorer:
    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=False, options={"freezing": True})

    def score(features: Arrays) -> Sequence[np.ndarray]:
        tensors = {name: torch.from_numpy(value) for name, value in features.items()}
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half), silenced():
            output = compiled(**given.arguments(tensors))
        values = output.values() if isinstance(output, dict) else (output,)
        return [value.float().numpy() for value in values]

    def told(features: Arrays) -> Sequence[np.ndarray]:
        try:
            return score(features)
        except Exception as error:
            raise UnavailableError(_first_line(error)) from error

    return told


def _inductor(given: Calibration, *, half: bool) -> Scorer:
    return _compiled(given.model, given, half=half)


def _torchao(given: Calibration) -> Scorer:
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        model = copy.deepcopy(given.model)
        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    except Exception as error:
        raise UnavailableError(_first_line(error)) from error
    return _compiled(model, given)


def _pt2e(given: Calibration) -> Scorer:
    try:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
            X86InductorQuantizer,
            get_default_x86_inductor_quantization_config,
        )

        first = given.features[0]
        batch = torch.export.Dim("batch")
        dynamic = given.structure.unflatten({name: {0: batch} for name in first})
        with torch.no_grad(), silenced():
            kwargs = given.arguments(first)
            graph = torch.export.export(given.model, (), dict(kwargs), dynamic_shapes=dynamic)
            quantizer = X86InductorQuantizer()
            quantizer.set_global(get_default_x86_inductor_quantization_config())
            prepared = prepare_pt2e(graph.module(), quantizer)
            for features in given.features:
                prepared(**given.arguments(features))
            return _compiled(convert_pt2e(prepared), given)
    except Exception as error:
        raise UnavailableError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    """What an error says, shortly."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:160]}"


PEERS: Mapping[str, Callable[[Calibration], Scorer]] = {
    "onnxruntime fp32": lambda given: onnxruntime_scorer(given.path),
    "onnxruntime dynamic int8": _dynamic,
    "onnxruntime static int8, min-max": partial(_static, CalibrationMethod.MinMax),
    "onnxruntime static int8, entropy": partial(_static, CalibrationMethod.Entropy),
    "onnxruntime static int8, percentile": partial(_static, CalibrationMethod.Percentile),
    "openvino fp32": lambda given: openvino_scorer(given.path),
    "openvino bf16": lambda given: openvino_scorer(given.path, "bf16"),
    "openvino int8 (NNCF)": _nncf,
    "openvino int8 (NNCF, accuracy control)": _nncf_controlled,
    "inductor fp32": partial(_inductor, half=False),
    "inductor bf16": partial(_inductor, half=True),
    "torchao int8 dynamic, inductor": _torchao,
    "pt2e int8 static, inductor": _pt2e,
}
