"""Named pipelines, as text."""

_CLEAN = "fixpoint(fold-constants,eliminate)"

PIPELINES: dict[str, str] = {
    "exact": f"canonicalize,{_CLEAN}",
    "rounding": f"exact,lower-embedding-bag,fold-batchnorm,fold-affine,{_CLEAN}",
    "attention": "recast-attention,cancel-views,compose-linears",
    "tokens": "mix-tokens,lower-convolution",
    "interactions": (
        "fuse-dot-interaction,reassociate-fm,batch-row-products,flatten-cin,contract-products"
    ),
    "structure": (
        f"interactions,attention,tokens,split-linears,collapse-crosses,sink-transposes,"
        f"merge-linears,{_CLEAN}"
    ),
    "grouping": f"group-tables,collapse-slices,{_CLEAN}",
    "default": (
        "rounding,structure,place-precision,quantize-tables,grouping,insert-quantize,eliminate"
    ),
}
