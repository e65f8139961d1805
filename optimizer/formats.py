"""What number formats there are, as data: no torch, for who opens an artifact reads them too.

What a format does is a class in `optimizer/precision/`, one for each; its ``code`` says where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Number:
    """How one number is held.

    Attributes:
        word: What reports call it.
        bits: It takes.
        torch: The name of the torch dtype that holds it.
        onnx: Its name among ONNX's data types.
        tensorrt: Its name in TensorRT's build log.
    """

    word: str
    bits: int
    torch: str
    onnx: str
    tensorrt: str

    @property
    def nbytes(self) -> float:
        """Bytes it takes."""
        return self.bits / 8.0


FP32 = Number("fp32", 32, "float32", "FLOAT", "Float")
BF16 = Number("bf16", 16, "bfloat16", "BFLOAT16", "BFloat16")
FP16 = Number("fp16", 16, "float16", "FLOAT16", "Half")
INT8 = Number("int8", 8, "int8", "INT8", "Int8")
#: PyTorch has no such dtype: a code is stored as a byte.
INT4 = Number("int4", 4, "int8", "INT4", "Int4")
E4M3 = Number("fp8", 8, "float8_e4m3fn", "FLOAT8E4M3FN", "FP8")
#: A power of two alone: the scale of a block. PyTorch's exporter has no such dtype: a byte.
E8M0 = Number("e8m0", 8, "uint8", "FLOAT8E8M0", "FP8UE8M0")
#: PyTorch computes with no such dtype: pairs of codes are bytes.
E2M1 = Number("fp4", 4, "uint8", "FLOAT4E2M1", "FP4E2M1")
#: All that weights, inputs, products and scales of blocks are in.
NUMBERS = (FP32, BF16, FP16, INT8, INT4, E4M3, E8M0, E2M1)
#: What a site is in that no format was placed on.
UNPLACED = FP32.word


@dataclass(frozen=True)
class LinearData:
    """What a number format of linears is, and costs.

    Attributes:
        name: As users write it.
        code: Its class, as ``module:Class`` of `optimizer/precision/`.
        weight: What a weight is held in.
        input: What an input is rounded to before the product.
        product: What is multiplied: the codes, or what they are decoded to.
        operator: The operator it stands as in a program.
        block: Weights along K that share a scale; 0 where an output has one, or none.
        scale: What the scale of a block is held in, where its bytes are counted.
        since: The first compute capability whose tensor cores have it, times ten.
        holders: What has it, in words.
        room: How many times the range of made-up rows its static range is where there is no data;
            0 where it needs no range.
        before: Formats that aren't tried without data where it may be: as right, with less assumed.
        lacking: Why a backend has no form for it, by the backend's name.
    """

    name: str
    code: str
    weight: Number
    input: Number
    product: Number
    operator: str
    block: int = 0
    scale: Number | None = None
    since: int = 0
    holders: str = ""
    room: float = 0.0
    before: tuple[str, ...] = ()
    lacking: Mapping[str, str] = field(default_factory=dict)

    @property
    def weight_bytes(self) -> float:
        """Bytes a weight takes."""
        return self.weight.nbytes + (self.scale.nbytes / self.block if self.scale else 0.0)


@dataclass(frozen=True)
class TableData:
    """What a number format of tables is, and costs.

    Attributes:
        name: As users write it.
        code: Its class in `optimizer/precision/table_formats.py`.
        value: What a value is held in.
        beside: Bytes of scale and bias, a row.
        any_rows: Whether its error hardly depends on which rows are looked up.
        since: The first compute capability that has it, times ten.
        holders: What has it, in words.
    """

    name: str
    code: str
    value: Number
    beside: float = 0.0
    any_rows: bool = True
    since: int = 0
    holders: str = ""


_TURING, _AMPERE = "SM75 (T4) and newer", "SM80 (A100) and newer"
_ADA = "SM89 (L4, L40S), SM90 (H100, H200), SM100 (B200) and SM120 (RTX PRO 6000)"
_BLACKWELL = "SM100 (B200) and SM120 (RTX PRO 6000)"
_NO_KERNEL = "it has no product whose input rows have a range each"
_NO_GAIN = "its CPU provider has no such product that pays"
_EMULATES = "it has no product of blocks: it would decode them and multiply in fp32"
_STATIC_ALONE = "it computes static INT8 and bf16 alone"

#: What a linear may take below fp32.
LINEAR: dict[str, LinearData] = {
    data.name: data
    for data in (
        LinearData(
            *("int8-rows", "row_codes:Int8Rows", INT8, INT8, INT8, "rowwise_linear"),
            before=("int8",),
            lacking=dict.fromkeys(("onnx", "tensorrt", "openvino"), _NO_KERNEL),
        ),
        LinearData(
            *("int8", "static_codes:Int8", INT8, INT8, INT8, "linear"),
            since=75,
            holders=_TURING,
            room=2.0,  # every doubling costs a bit
        ),
        LinearData(
            *("fp8", "static_codes:Fp8", E4M3, E4M3, E4M3, "linear"),
            since=89,
            holders=_ADA,
            room=8.0,  # E4M3 keeps its precision over 28,672 to 1
            before=("int8",),
            lacking={"openvino": _STATIC_ALONE},
        ),
        LinearData(
            *("mxfp8", "mxfp8:MxFp8", E4M3, E4M3, E4M3, "mxfp8_linear"),
            block=32,
            scale=E8M0,
            since=100,
            holders=_BLACKWELL,
            lacking=dict.fromkeys(("onnxruntime", "openvino", "inductor"), _EMULATES),
        ),
        LinearData(
            *("nvfp4", "nvfp4:NvFp4", E2M1, E2M1, E2M1, "nvfp4_linear"),
            block=16,
            scale=E4M3,
            since=100,
            holders=_BLACKWELL,
            room=8.0,  # the scales of blocks are E4M3
            lacking=dict.fromkeys(("onnxruntime", "openvino", "inductor"), _EMULATES),
        ),
        LinearData(
            *("int8-weights", "coded_weights:Int8Weights", INT8, BF16, BF16, "coded_linear"),
            since=80,
            holders=_AMPERE,
            lacking={"onnxruntime": _NO_GAIN, "openvino": _STATIC_ALONE},
        ),
        LinearData(
            *("int4-weights", "coded_weights:Int4Weights", INT4, BF16, BF16, "coded_linear"),
            block=64,  # the least that TensorRT takes
            since=80,
            holders=_AMPERE,
            lacking={"onnxruntime": _NO_GAIN, "openvino": _STATIC_ALONE},
        ),
        LinearData(
            *("bf16", "halves:Bf16", BF16, BF16, BF16, "half_linear"),
            since=80,
            holders=_AMPERE,
            lacking={"onnxruntime": _NO_GAIN},
        ),
        LinearData(
            *("fp16", "halves:Fp16", FP16, FP16, FP16, "half_linear"),
            since=75,
            holders=_TURING,
            lacking={"openvino": _STATIC_ALONE},
        ),
    )
}

#: What a table may take below fp32.
TABLE: dict[str, TableData] = {
    data.name: data
    for data in (
        TableData("int8", "Int8Rows", INT8, beside=8.0, since=75, holders=_TURING),
        TableData("int4", "Int4Rows", INT4, beside=4.0, any_rows=False),
        TableData("fp16", "Fp16Rows", FP16, since=75, holders=_TURING),
    )
}
LINEAR_FORMATS, TABLE_FORMATS = tuple(LINEAR), tuple(TABLE)


def weight_width(number_format: str) -> float:
    """Bytes a weight of a linear takes in a format."""
    data = LINEAR.get(number_format)
    return data.weight_bytes if data else FP32.nbytes


def product_of(number_format: str) -> str:
    """What is multiplied in a format, in the word that peaks of devices go by."""
    data = LINEAR.get(number_format)
    return data.product.word if data else number_format
