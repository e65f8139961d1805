"""Targets: what device, which number formats, which backends."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from .errors import TargetError
from .formats import FP32, LINEAR_FORMATS, TABLE_FORMATS, product_of


@dataclass(frozen=True)
class DeviceSpec:
    """A device, as far as the cost model needs it.

    Attributes:
        name: What it is called.
        kind: ``"cpu"`` or ``"cuda"``.
        sm: CUDA compute capability times ten (90 for an H100); None on a CPU.
        bandwidth: Memory bandwidth in GB/s.
        memory: Its memory in GB; 0 where that is the machine's.
        peaks: Peak rate per format in Tera-operations/s, dense, as ``(format, rate)`` pairs.
        source: Where the numbers come from.
    """

    name: str
    kind: str
    sm: int | None = None
    bandwidth: float = 0.0
    memory: float = 0.0
    peaks: tuple[tuple[str, float], ...] = ()
    source: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceSpec:
        """The device that `Target.to_json` wrote."""
        return cls(**{**data, "peaks": tuple(tuple(peak) for peak in data["peaks"])})

    def peak(self, number_format: str) -> float:
        """Peak rate in operations/s; an unlisted format runs at the rate of fp32."""
        rates = dict(self.peaks)
        slowest = rates.get(FP32.word, 1.0)
        return 1e12 * rates.get(number_format, rates.get(product_of(number_format), slowest))


@dataclass(frozen=True)
class Target:
    """What an artifact is built for.

    Attributes:
        name: What users call it, such as ``"h100-fp8"``.
        device: The device.
        formats: Formats a linear may take below fp32: ``"int8"`` and ``"fp8"`` (one static range
            for the input), ``"int8-rows"`` (a range for each input row), ``"int8-weights"`` and
            ``"int4-weights"`` (the weights alone), ``"mxfp8"`` and ``"nvfp4"`` (a scale for each
            block of inputs), ``"bf16"``, ``"fp16"``.
        table_formats: Formats a table may take below fp32.
        int8_activations: ``"uint8"`` (affine, what ONNX Runtime's CPU kernels take) or ``"int8"``
            (symmetric, what TensorRT takes).
        backends: Backends that can serve it, best first.
        min_linear: Linears with fewer inputs or outputs than this keep their format.
        memory_weight: The share of the time that all bytes of tables and weights are worth: at
            0.25, saving half of them is worth being an eighth slower.
        measured: Whether this machine is such a device, so that kernels are timed on it.
        alignment: Tensor cores take inputs and outputs in multiples of this; others are padded.
        tile: Outputs of a linear that its kernels compute at once: 17 take as long as 32 of them.

    Raises:
        TargetError: It names a format that nothing takes.
    """

    name: str
    device: DeviceSpec
    formats: tuple[str, ...] = ()
    table_formats: tuple[str, ...] = ()
    int8_activations: str = "int8"
    backends: tuple[str, ...] = ("onnxruntime",)
    min_linear: int = 16
    measured: bool = False
    memory_weight: float = 0.25
    alignment: int = 1
    tile: int = 16

    def __post_init__(self) -> None:
        self._require("linear", self.formats, LINEAR_FORMATS)
        self._require("table", self.table_formats, TABLE_FORMATS)

    def _require(self, kind: str, named: tuple[str, ...], known: tuple[str, ...]) -> None:
        for number_format in named:
            if number_format not in known:
                raise TargetError(
                    f"target {self.name!r} names the format {number_format!r}, which no {kind} "
                    f"takes; a {kind} may take {', '.join(known)}"
                )

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """The target that `to_json` wrote.

        Raises:
            TargetError: It names a format that nothing takes.
        """
        lists = ("formats", "table_formats", "backends")
        made = {name: tuple(data[name]) for name in lists}
        return cls(**{**data, **made, "device": DeviceSpec.from_json(data["device"])})

    @property
    def adds_by_index(self) -> bool:
        """Whether rows can be added where an index says; TensorRT's parser refuses to."""
        return self.device.kind != "cuda"

    @classmethod
    def of(cls, target: str | Target) -> Target:
        """The target called by that name.

        Raises:
            TargetError: No target has that name; those of its format, or the nearest,
                are named.
        """
        if isinstance(target, Target):
            return target
        if not isinstance(target, str):
            raise TargetError(
                f"a target is a name or a rankc.Target, got {type(target).__name__}. "
                f"Known names: {', '.join(TARGETS)}."
            )
        found = TARGETS.get(target)
        if found is None:
            kind = target.rpartition("-")[2]
            near = (
                [name for name in TARGETS if name.rpartition("-")[2] == kind]
                or difflib.get_close_matches(target, TARGETS, n=3, cutoff=0.3)
                or list(TARGETS)
            )
            raise TargetError(
                f"unknown target {target!r}; did you mean {' or '.join(near)}? "
                "`rankc targets` lists them all; rankc.Target(...) makes one of your own."
            )
        return found


_CPU = DeviceSpec(
    "x86-64 CPU, one AVX512-VNNI core",
    "cpu",
    bandwidth=12.0,
    peaks=(("fp32", 0.106), ("bf16", 0.21), ("int8", 0.415)),
    source="measured on one Zen 4 core: GEMM rates and stream triad",
)
_H100 = DeviceSpec(
    "NVIDIA H100 SXM",
    "cuda",
    sm=90,
    bandwidth=3350.0,
    memory=80.0,
    peaks=(("fp32", 67.0), ("bf16", 989.0), ("fp16", 989.0), ("fp8", 1979.0), ("int8", 1979.0)),
    source="NVIDIA H100 data sheet, dense",
)
_L40S = DeviceSpec(
    "NVIDIA L40S",
    "cuda",
    sm=89,
    bandwidth=864.0,
    memory=48.0,
    peaks=(("fp32", 91.6), ("bf16", 362.0), ("fp16", 362.0), ("fp8", 733.0), ("int8", 733.0)),
    source="NVIDIA L40S data sheet, dense",
)
_A100 = DeviceSpec(
    "NVIDIA A100 SXM 80 GB",
    "cuda",
    sm=80,
    bandwidth=2039.0,
    memory=80.0,
    peaks=(("fp32", 19.5), ("bf16", 312.0), ("fp16", 312.0), ("int8", 624.0)),
    source="NVIDIA A100 data sheet, dense",
)
_B200 = DeviceSpec(
    "NVIDIA B200",
    "cuda",
    sm=100,
    bandwidth=8000.0,
    memory=180.0,
    peaks=(
        *(("fp32", 75.0), ("bf16", 2250.0), ("fp16", 2250.0), ("fp8", 4500.0), ("int8", 4500.0)),
        ("fp4", 9000.0),
    ),
    source="NVIDIA DGX B200 data sheet, per GPU, dense",
)

_H200 = replace(
    _H100, name="NVIDIA H200 SXM", bandwidth=4800.0, memory=141.0, source="NVIDIA H200 data sheet"
)
_RTX6000 = DeviceSpec(
    "NVIDIA RTX PRO 6000 Blackwell",
    "cuda",
    sm=120,
    bandwidth=1792.0,
    memory=96.0,
    peaks=(
        *(("fp32", 125.0), ("bf16", 504.0), ("fp16", 504.0), ("fp8", 1008.0), ("int8", 1008.0)),
        ("fp4", 2015.0),
    ),
    source="NVIDIA RTX Blackwell PRO architecture paper, dense",
)


def _gpu(name: str, device: DeviceSpec, *formats: str, tables: tuple[str, ...] = ()) -> Target:
    """A target on an NVIDIA GPU: TensorRT first, PyTorch where it can't, ONNX to take elsewhere."""
    return Target(
        name,
        device,
        formats,
        tables,
        backends=("tensorrt", "inductor", "onnx"),
        alignment=16,
    )


#: What GPUs have besides FP8: for linears, and for tables.
_INT8, _TABLES = ("int8", "bf16", "int8-rows"), ("int8",)
#: What serves CPU targets; where several are installed, the fastest.
_CPU_BACKENDS = ("onnxruntime", "openvino")

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("cpu-fp32", _CPU, backends=_CPU_BACKENDS, measured=True),
        Target("cpu-bf16", _CPU, formats=("bf16",), backends=_CPU_BACKENDS, measured=True),
        Target(
            "cpu-int8",
            _CPU,
            formats=("int8-rows", "int8", "bf16"),
            table_formats=("int8", "int4"),
            int8_activations="uint8",
            backends=_CPU_BACKENDS,
            measured=True,
        ),
        Target("mlir-cpu", _CPU, backends=("mlir",)),
        _gpu("a100-bf16", _A100, "bf16"),
        _gpu("a100-int8", _A100, *_INT8, tables=_TABLES),
        _gpu("l40s-fp8", _L40S, "fp8", *_INT8, tables=_TABLES),
        _gpu("h100-bf16", _H100, "bf16"),
        _gpu("h100-fp8", _H100, "fp8", *_INT8, tables=_TABLES),
        _gpu("h200-fp8", _H200, "fp8", *_INT8, tables=_TABLES),
        _gpu("b200-fp8", _B200, "fp8", *_INT8, "mxfp8", tables=_TABLES),
        _gpu("b200-fp4", _B200, "nvfp4", "fp8", *_INT8, "mxfp8", tables=_TABLES),
        _gpu("rtx6000-fp4", _RTX6000, "nvfp4", "fp8", *_INT8, tables=_TABLES),
        _gpu("rtx6000-fp8", _RTX6000, "fp8", *_INT8, tables=_TABLES),
    )
}


def targets_with(number_format: str) -> tuple[str, ...]:
    """The names of the targets whose linears or tables may take a format."""
    return tuple(
        name
        for name, target in TARGETS.items()
        if number_format in (*target.formats, *target.table_formats)
    )
