"""Named pipelines, as text."""

_CLEAN = "fixpoint(fold-constants,eliminate)"

PIPELINES: dict[str, str] = {
    "exact": f"canonicalize,{_CLEAN}",
    "rounding": (
        "exact,lower-embedding-bag,drop-unused-rows,raise-linears,sink-unsqueezes,fold-batchnorm,fold-affine,"
        f"{_CLEAN}"
    ),
    "interactions": (
        "fuse-dot-interaction,reassociate-fm,batch-row-products,flatten-cin,factor-mixtures,"
        "consolidate-heads,contract-products"
    ),
    "attention": "recast-attention,cancel-views,compose-linears",
    "tokens": "mix-tokens,lower-convolution",
    "structure": (
        "interactions,attention,tokens,split-linears,collapse-crosses,sink-unsqueezes,"
        f"sink-transposes,merge-linears,{_CLEAN}"
    ),
    "grouping": f"group-tables,collapse-slices,{_CLEAN}",
    "default": (
        "strip-train-only,rounding,structure,place-precision,quantize-tables,grouping,"
        "insert-quantize,eliminate"
    ),
}
