"""What number formats there are, as data: no torch, for who opens an artifact reads them too."""

from __future__ import annotations

#: What a linear may take below fp32.
LINEAR_FORMATS = ("int8-rows", "int8", "fp8", "int8-weights", "int4-weights", "bf16", "fp16")
#: What a table may take below fp32.
TABLE_FORMATS = ("int8", "int4", "fp16")
#: The 16-bit formats a linear can take, and the names of their torch dtypes.
HALF = {"bf16": "bfloat16", "fp16": "float16"}
#: The formats of a linear's weights alone, and their bits a code; the product is in bf16.
WEIGHTS_ALONE = {"int8-weights": 8, "int4-weights": 4}
#: What is multiplied in the formats that aren't called so: the codes, or what they are decoded to.
PRODUCTS = {"int8-rows": "int8", "int8-weights": "bf16", "int4-weights": "bf16"}


def weight_width(number_format: str) -> float:
    """Bytes a weight of a linear takes in a format."""
    if number_format in WEIGHTS_ALONE:
        return WEIGHTS_ALONE[number_format] / 8.0
    return {"fp32": 4.0, **dict.fromkeys(HALF, 2.0)}.get(number_format, 1.0)
