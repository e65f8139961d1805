"""The passes: one a file, under its own name. The table is all there is here."""

#: name -> "module:Class", imported when first asked for.
PASSES: dict[str, str] = {
    "cancel-views": "cancel_views:CancelViews",
    "canonicalize": "canonicalize:Canonicalize",
    "collapse-slices": "collapse_slices:CollapseSlices",
    "compose-linears": "compose_linears:ComposeLinears",
    "eliminate": "eliminate:Eliminate",
    "fold-affine": "fold_affine:FoldAffine",
    "fold-batchnorm": "fold_batchnorm:FoldBatchnorm",
    "fold-constants": "fold_constants:FoldConstants",
    "fuse-dot-interaction": "fuse_dot_interaction:FuseDotInteraction",
    "group-tables": "group_tables:GroupTables",
    "insert-quantize": "insert_quantize:InsertQuantize",
    "lower-convolution": "lower_convolution:LowerConvolution",
    "lower-embedding-bag": "lower_embedding_bag:LowerEmbeddingBag",
    "merge-linears": "merge_linears:MergeLinears",
    "mix-tokens": "mix_tokens:MixTokens",
    "place-precision": "place_precision:PlacePrecision",
    "recast-attention": "recast_attention:RecastAttention",
    "quantize-tables": "quantize_tables:QuantizeTables",
    "reassociate-fm": "reassociate_fm:ReassociateFm",
}
