"""Named pipelines, as text."""

_CLEAN = "fixpoint(fold-constants,eliminate)"

PIPELINES: dict[str, str] = {
    "exact": f"canonicalize,{_CLEAN}",
    "rounding": f"exact,lower-embedding-bag,fold-batchnorm,fold-affine,{_CLEAN}",
    "structure": f"fuse-dot-interaction,reassociate-fm,consolidate-heads,merge-linears,{_CLEAN}",
    "grouping": f"group-tables,collapse-slices,{_CLEAN}",
    "default": (
        "strip-train-only,rounding,structure,place-precision,quantize-tables,grouping,"
        "insert-quantize,eliminate"
    ),
}
