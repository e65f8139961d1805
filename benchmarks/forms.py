"""What is off, with the numbers that say so: RMSNorm for LayerNorm, padding, coded weights.

``make bench-forms`` writes ``benchmarks/results/forms.md``. A LayerNorm behind a linear whose
weights are centred needs no mean: it is an RMSNorm. And a linear of an odd width could be padded to
what kernels compute at once, which costs nothing where the linear before it can be padded as well.
Both are timed at their best: alone, and without what it takes to bring a model into that form.

A linear whose weights alone are coded reads fewer bytes, and decodes them at every call. It is
timed beside the same linear in fp32 and, for ONNX Runtime, beside its product of codes whose input
is coded while running, which is what ``int8-rows`` comes to without the native operators.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from rankc.optimizer.timing import side_by_side

Run = Callable[[np.ndarray], object]
BATCHES = (1, 64, 512, 2048)
WIDTHS = (64, 256, 512, 1024)
#: Inputs and outputs, and what they are padded to. Those of the zoo's models that are odd.
LINEARS = (
    ((269, 269), (272, 272)),
    ((253, 512), (256, 512)),
    ((529, 512), (544, 512)),
    ((390, 780), (400, 784)),
    ((1047, 1024), (1056, 1024)),
    ((351, 400), (352, 400)),
)
ENGINES = ("onnxruntime", "openvino")
#: Inputs and outputs of linears whose weights are coded.
CODED = ((512, 256), (1024, 1024), (3456, 1024))
#: Bits of a code, inputs that share a scale, and what ONNX Runtime may round the input to.
CODES = ((8, 128, "fp32"), (8, 128, "int8"), (4, 64, "fp32"), (4, 64, "int8"))


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/forms.md"))
    arguments = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ENGINES)
    lines = [
        "# Forms that are off",
        "",
        f"One thread, interleaved, medians of process CPU time; how many times as fast the other "
        f"form is. {versions}.",
        "",
        "## RMSNorm in the place of LayerNorm",
        "",
        "Alone, and behind the linear of as many inputs that it follows (ONNX Runtime).",
        "",
        f"| width | {' | '.join(f'alone, batch {b}' for b in BATCHES)} | "
        f"{' | '.join(f'with the linear, batch {b}' for b in BATCHES)} |",
        "|---:|" + "---:|" * (2 * len(BATCHES)),
    ]
    for width in WIDTHS:
        ratios = [norms(width, batch, linear) for linear in (False, True) for batch in BATCHES]
        lines.append(f"| {width} | {' | '.join(f'{r:.2f}×' for r in ratios)} |")
        print(lines[-1], flush=True)
    for name in ENGINES:
        lines += ["", f"## Linears padded, {name}", ""]
        lines += [f"| linear | padded to | {' | '.join(f'batch {b}' for b in BATCHES)} |"]
        lines += ["|---|---|" + "---:|" * len(BATCHES)]
        for plain, padded in LINEARS:
            ratios = [padding(name, plain, padded, batch) for batch in BATCHES]
            shapes = " | ".join(f"{k} to {n}" for k, n in (plain, padded))
            lines.append(f"| {shapes} | {' | '.join(f'{r:.2f}×' for r in ratios)} |")
            print(lines[-1], flush=True)
    batches = " | ".join(f"batch {b}" for b in BATCHES)
    lines += ["", "## Weights alone in codes", ""]
    lines += ["Over the same engine's fp32. The error is the output's, for normal weights."]
    lines += ["", f"| engine | linear | form | error | {batches} |"]
    lines += ["|---|---|---|---:|" + "---:|" * len(BATCHES)]
    for inputs, outputs in CODED:
        for line in coded(inputs, outputs):
            lines.append(line)
            print(line, flush=True)
    arguments.out.write_text("\n".join(lines) + "\n")


def coded(inputs: int, outputs: int) -> list[str]:
    """A line for each engine and form of a linear."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((inputs, outputs), np.float32) / np.float32(inputs**0.5)
    forms: dict[tuple[str, str], onnx.ModelProto] = {}
    plain = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, inputs)
    for bits, block, rounded in CODES:
        name = f"{bits} bits, {block} a scale, input in {rounded}"
        forms["onnxruntime", name] = blockwise(weight, bits, block, rounded == "int8")
    forms["onnxruntime", "INT8 product, input coded while running"] = dynamic(weight)
    forms["openvino", "8 bits, an output a scale"] = decoded(weight)
    runs = {
        "onnxruntime": {"plain": onnxruntime_run(plain)},
        "openvino": {"plain": openvino_run(plain)},
    }
    for (engine, name), made in forms.items():
        runs[engine][name] = (onnxruntime_run if engine == "onnxruntime" else openvino_run)(made)
    rows = {b: rng.standard_normal((b, inputs), np.float32) for b in BATCHES}
    lines = []
    for engine, named in runs.items():
        timed = {
            b: side_by_side(
                {name: partial(run, rows[b]) for name, run in named.items()},
                rounds=15,
                clock=time.process_time,
            )
            for b in BATCHES
        }
        for name in list(named)[1:]:
            ratios = [timed[b]["plain"].median / timed[b][name].median for b in BATCHES]
            error = relative(named[name](rows[64]), rows[64] @ weight)
            times = " | ".join(f"{r:.2f}×" for r in ratios)
            lines.append(f"| {engine} | {inputs} to {outputs} | {name} | {error:.4f} | {times} |")
    return lines


def relative(found: object, exact: np.ndarray) -> float:
    """How far an engine's only output is off."""
    (value,) = found if isinstance(found, list) else found.to_tuple()  # type: ignore[attr-defined]
    return float(np.linalg.norm(value - exact) / np.linalg.norm(exact))


def blockwise(weight: np.ndarray, bits: int, block: int, rounded: bool) -> onnx.ModelProto:
    """ONNX Runtime's product with codes of 4 or 8 bits, with a scale for each block of inputs."""
    inputs, outputs = weight.shape
    blocks = np.ascontiguousarray(weight.T).reshape(outputs, inputs // block, block)
    scale = np.abs(blocks).max(-1) / (2 ** (bits - 1) - 1)
    codes = np.round(blocks / scale[..., None]) + 2 ** (bits - 1)
    codes = codes.clip(0, 2**bits - 1).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scale"],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=block,
        accuracy_level=4 if rounded else 1,
    )
    return model([node], {"codes": codes, "scale": scale.astype(np.float32)}, inputs)


def dynamic(weight: np.ndarray) -> onnx.ModelProto:
    """ONNX Runtime's product of codes, the input's range found at every call."""
    scale = np.abs(weight).max(0) / 127
    given = {"codes": np.round(weight / scale).astype(np.int8), "scale": scale.astype(np.float32)}
    names = ["x", "codes", "scale"]
    node = helper.make_node("DynamicQuantizeMatMul", names, ["y"], domain="com.microsoft")
    return model([node], given, len(weight))


def decoded(weight: np.ndarray) -> onnx.ModelProto:
    """A DequantizeLinear of the weight's codes, which OpenVINO decodes inside the product."""
    scale = np.abs(weight).max(0) / 127
    given = {"codes": np.round(weight / scale).astype(np.int8), "scale": scale.astype(np.float32)}
    decode = helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], axis=1)
    return model([decode, helper.make_node("MatMul", ["x", "w"], ["y"])], given, len(weight))


def norms(width: int, batch: int, linear: bool) -> float:
    """How many times as fast an RMSNorm is as a LayerNorm."""
    weight = np.random.default_rng(0).standard_normal((width, width), np.float32)
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    before = [helper.make_node("MatMul", ["x", "w"], ["h"])] if linear else []
    source = "h" if linear else "x"
    given = {"s": ones, "b": zeros} | ({"w": weight} if linear else {})
    plain = helper.make_node("LayerNormalization", [source, "s", "b"], ["y"], axis=-1)
    # What ONNX Runtime calls an RMSNorm; the bias has to be added apart.
    rms = helper.make_node("SimplifiedLayerNormalization", [source, "s"], ["z"], axis=-1)
    add = helper.make_node("Add", ["z", "b"], ["y"])
    runs = {
        "layer": onnxruntime_run(model([*before, plain], given, width)),
        "rms": onnxruntime_run(model([*before, rms, add], given, width)),
    }
    return ratio(runs, {"layer": width, "rms": width}, batch)


def padding(name: str, plain: tuple[int, int], padded: tuple[int, int], batch: int) -> float:
    """How many times as fast a linear is when it is padded."""
    runs, inputs = {}, {}
    for label, (k, n) in (("plain", plain), ("padded", padded)):
        rng = np.random.default_rng(0)
        given = {
            "w": rng.standard_normal((n, k), np.float32),
            "b": rng.standard_normal(n, np.float32),
        }
        made = model([helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], given, k)
        runs[label] = onnxruntime_run(made) if name == "onnxruntime" else openvino_run(made)
        inputs[label] = k
    return ratio(runs, inputs, batch)


def ratio(runs: Mapping[str, Run], inputs: Mapping[str, int], batch: int) -> float:
    """The first one's time over the second one's."""
    calls = {}
    for name, run in runs.items():
        rows = np.random.default_rng(1).standard_normal((batch, inputs[name]), np.float32)
        calls[name] = partial(run, rows)
    first, second = side_by_side(calls, rounds=15, clock=time.process_time).values()
    return first.median / second.median


def model(
    nodes: Sequence[onnx.NodeProto], given: Mapping[str, np.ndarray], width: int
) -> onnx.ModelProto:
    """A model of one float input ``[batch, width]``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])
    weights = [numpy_helper.from_array(value, name) for name, value in given.items()]
    graph = helper.make_graph(list(nodes), "form", [x], [y], weights)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def onnxruntime_run(made: onnx.ModelProto) -> Run:
    """ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda rows: session.run(None, {"x": rows})


def openvino_run(made: onnx.ModelProto) -> Run:
    """OpenVINO on one thread, in fp32."""
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(made.SerializeToString()), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda rows: request.infer([rows], share_inputs=True)


if __name__ == "__main__":
    main()
