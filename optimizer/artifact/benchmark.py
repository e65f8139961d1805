"""An artifact's time beside its model's, in eager PyTorch and in plain ONNX Runtime."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..timing import side_by_side

if TYPE_CHECKING:
    from torch import nn

    from ..data.rows import Rows
    from .artifact import Artifact

_LOG = logging.getLogger("rankc")


def compare(
    artifact: Artifact,
    model: nn.Module | None,
    batch_sizes: Sequence[int],
    rows: Rows | None = None,
) -> list[dict[str, float]]:
    """Milliseconds a call of the artifact, beside eager PyTorch and plain ONNX Runtime fp32.

    One thread each, in one process, interleaved.

    Args:
        artifact: What to time.
        model: The original, for the two peers; None times the artifact alone.
        batch_sizes: At which sizes.
        rows: Real rows to time on; made up from the signature when None.

    Returns:
        A dict per batch size: ``batch``, ``artifact``, and with a model ``eager``,
        ``onnxruntime fp32`` and ``speedup`` (the latter over the artifact; the eager model's where
        torch.onnx doesn't take it). Where the artifact
        takes requests, ``request`` is one of as many candidates, and ``request speedup`` the
        peer's time, with the user given once for each, over it.
    """
    from ..data.synthetic import synthesize
    from ..ir.scratch import Scratch
    from ..requests.entry import one_user

    source = rows if rows is not None else synthesize(artifact.signature, max(batch_sizes))
    found = []
    with _one_thread(), Scratch() as folder:
        runners: dict[str, Callable[..., object]] = {"artifact": artifact.open(1)}
        requests = artifact.open_request(1) if artifact.manifest.request else None
        if model is not None:
            plain = _plain_onnx(model, artifact, folder)
            if plain is not None:
                runners["onnxruntime fp32"] = plain
        for size in batch_sizes:
            features = source.part(0, size).features
            arrays = {name: value.numpy() for name, value in features.items()}
            calls: dict[str, Callable[[], object]] = {
                name: partial(runner, arrays) for name, runner in runners.items()
            }
            if requests is not None:
                assert artifact.manifest.request is not None
                once = one_user(arrays, artifact.manifest.request.shared)
                if artifact.manifest.request.ahead:
                    once |= artifact.precompute(once)
                calls["request"] = partial(requests, once)
            if model is not None:
                call = artifact.manifest.inputs.unflatten(features)
                calls["eager"] = partial(_eager, model, _own(model, call))
            timings = side_by_side(calls)
            row = {"batch": float(size)}
            row |= {name: round(1e3 * timing.median, 4) for name, timing in timings.items()}
            if model is not None:
                peer = row.get("onnxruntime fp32", row["eager"])
                row["speedup"] = round(peer / row["artifact"], 3)
                if requests is not None:
                    row["request speedup"] = round(peer / row["request"], 3)
            found.append(row)
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _plain_onnx(model: nn.Module, artifact: Artifact, folder: Path) -> Callable[..., object] | None:
    """The model as torch.onnx writes it, with nothing of ours in between, in ONNX Runtime.

    None, and told, where torch.onnx doesn't take the model.
    """
    import onnxruntime
    import torch

    from ..data.delimiters import ragged_of
    from ..data.synthetic import synthesize
    from ..ir.torchapi import silenced

    features = synthesize(artifact.signature, 8).features
    call = _own(model, artifact.manifest.inputs.unflatten(features))
    # Ids one row after another have another size than the rows, which torch works out by itself.
    ragged = bool(ragged_of(artifact.signature))
    first: Any = torch.export.Dim.AUTO if ragged else torch.export.Dim("batch")
    rows = artifact.manifest.inputs.unflatten({name: {0: first} for name in features})
    dynamic = _own(model, rows)
    try:
        with silenced():
            made = torch.onnx.export(
                model.eval(), kwargs=call, dynamo=True, dynamic_shapes=dynamic, verbose=False
            )
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        _LOG.warning("plain ONNX Runtime isn't timed: torch.onnx can't export it: %s", reason)
        return None
    assert made is not None
    made.save(folder / "plain.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(folder / "plain.onnx"), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]

    def run(arrays: Mapping[str, object]) -> object:
        # What only the artifact takes comes last.
        return session.run(None, dict(zip(names, arrays.values(), strict=False)))

    return run


def _own(model: nn.Module, call: Mapping[str, object]) -> dict[str, object]:
    """Less the arguments that only the artifact takes."""
    taken = inspect.signature(model.forward).parameters
    return {name: value for name, value in call.items() if name in taken}


def _eager(model: nn.Module, call: Mapping[str, object]) -> object:
    import torch

    with torch.inference_mode():
        return model(**call)
