"""Named pipelines, as text."""

_CLEAN = "fixpoint(fold-constants,eliminate)"

PIPELINES: dict[str, str] = {
    "exact": f"canonicalize,{_CLEAN}",
    "rounding": f"exact,lower-embedding-bag,fold-batchnorm,fold-affine,{_CLEAN}",
    "default": "rounding,quantize-tables,place-precision,insert-quantize,eliminate",
}
