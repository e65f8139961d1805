"""What backends that read ONNX have in common; in what they differ, they say by hooks.

A backend that reads ONNX subclasses `OnnxBackend`, and a `Runtime` that opens its files. It gets
the translation, the checks by node, files beside files, and times of parts of a program. In order:

1. `supports` of each node; a subclass refuses more;
2. the translation to ONNX;
3. `rewrite`: in the words of the runtime that reads it;
4. the file, `metadata` in it;
5. `finish`: what is written beside the file, or found out of it;
6. `notes` for the report.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.utils
import onnx_ir as ir
import torch
from torch import Tensor, fx

from ...optimizer.backend import Backend, Built
from ...optimizer.errors import TargetError, UnsupportedError
from ...optimizer.ir import Program
from ...optimizer.ir.scratch import Scratch
from ...optimizer.runtime import Runner
from ...optimizer.target import Target
from ...optimizer.timing import side_by_side
from .double import without_kernel
from .files import MODEL, entry_file
from .translate import save_onnx, share_data, to_onnx

_aten = torch.ops.aten
#: Operators that would become ONNX Loops or Sequences, or have no ONNX form at all.
_REFUSED: dict[Any, str] = {
    _aten.embedding_bag.padding_idx: "a bag that lower-embedding-bag has no form for",
    _aten.embedding_bag.default: "a bag that lower-embedding-bag has no form for",
    _aten.segment_reduce.default: "ONNX has no segment_reduce",
}


class OnnxBackend(Backend):
    """Builds ``model.onnx``, and ``<entry>.onnx`` beside it."""

    #: The packages whose versions an artifact names, besides those that write ONNX.
    packages: ClassVar[tuple[str, ...]] = ()

    # --- hooks ------------------------------------------------------------------------------------

    def rewrite(self, model: ir.Model) -> Mapping[str, int]:
        """Rewrites the translated model, in place, in the words of what reads it.

        Args:
            model: Standard ONNX (opset 21), quantization as Q/DQ; not saved yet.

        Returns:
            How many of each kind were rewritten, for the report.
        """
        return {}

    def finish(self, built: Built, program: Program, path: Path) -> Built:
        """Does what is left once a model is written.

        Args:
            built: What was written so far.
            program: It was translated from.
            path: The model's file.

        Returns:
            What was built, the files that were added included.

        Raises:
            UnsupportedError: What reads the file refuses it.
        """
        return built

    def notes(self) -> tuple[str, ...]:
        """Sentences for the report, of each build."""
        return ()

    def run_part(self, model: bytes) -> Runner:
        """Opens a part of a model on one thread, so that it can be timed (`seconds_apart`).

        Args:
            model: It was rewritten as a part of the whole.

        Raises:
            TargetError: The backend times nothing.
        """
        raise TargetError(f"{self.name} times nothing")

    # --- what they have in common -----------------------------------------------------------------

    def supports(self, node: fx.Node, target: Target) -> str | None:
        """None, or why the node has no form."""
        return _REFUSED.get(node.target) or without_kernel(node)

    def lacks(self, program: Program) -> str:
        """Why ONNX has no form for it."""
        try:
            to_onnx(program)
        except UnsupportedError as error:
            return str(error)
        return ""

    def build(
        self, program: Program, target: Target, folder: Path, metadata: Mapping[str, str]
    ) -> Built:
        """Writes ``model.onnx``."""
        path = folder / MODEL
        return self.finish(self.write(program, target, path, metadata), program, path)

    def build_beside(
        self,
        entry: str,
        program: Program,
        target: Target,
        folder: Path,
        metadata: Mapping[str, str],
    ) -> Built:
        """Writes ``<entry>.onnx``, which reads what it can from ``model.onnx.data``."""
        path = entry_file(folder, entry)
        built = self.write(program, target, path, metadata)
        if (folder / MODEL).exists():
            built = replace(built, files=share_data(path, folder / MODEL))
        return self.finish(built, program, path)

    def write(
        self, program: Program, target: Target, path: Path, metadata: Mapping[str, str]
    ) -> Built:
        """Writes one model: refusals, translation, `rewrite`, file and `notes`.

        Raises:
            UnsupportedError: Which nodes have no form, and why.
        """
        self.require(program, target)
        model = to_onnx(program)
        rewritten = self.rewrite(model)
        files = save_onnx(model, path, metadata)
        return Built(files, self.written_by(), self.notes(), rewritten)

    def written_by(self) -> dict[str, str]:
        """The versions of the packages that write and run the files."""
        return {name: version(name) for name in ("onnx", "onnxscript", *self.packages)}

    def seconds_apart(
        self,
        program: Program,
        target: Target,
        features: Mapping[str, Tensor],
        rows: Mapping[str, Sequence[int]],
    ) -> dict[str, dict[int, float]]:
        """Builds once, cuts the model apart, and times each part interleaved over its rows."""
        with Scratch() as place:
            self.build(program, target, place, {})
            whole = onnx.load(place / MODEL)
        extractor = onnx.utils.Extractor(whole)
        found = {}
        for name, output in zip(program.signature.names, program.signature.outputs, strict=True):
            part = extractor.extract_model([name], [output])
            runner = self.run_part(part.SerializeToString())
            array = features[name].numpy()
            calls = {
                str(count): partial(runner, {name: np.ascontiguousarray(array[:count])})
                for count in dict.fromkeys(rows[name])
            }
            timed = side_by_side(calls, rounds=7, seconds=0.004, clock=time.process_time)
            found[name] = {int(count): timing.median for count, timing in timed.items()}
        return found
