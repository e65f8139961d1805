"""The passes: one a file, under its own name. The table is all there is here."""

#: name -> "module:Class", imported when first asked for.
PASSES: dict[str, str] = {
    "canonicalize": "canonicalize:Canonicalize",
    "collapse-slices": "collapse_slices:CollapseSlices",
    "consolidate-heads": "consolidate_heads:ConsolidateHeads",
    "eliminate": "eliminate:Eliminate",
    "factorize-linear": "factorize_linear:FactorizeLinear",
    "finetune": "finetune:Finetune",
    "fold-affine": "fold_affine:FoldAffine",
    "fold-batchnorm": "fold_batchnorm:FoldBatchnorm",
    "fold-constants": "fold_constants:FoldConstants",
    "fuse-dot-interaction": "fuse_dot_interaction:FuseDotInteraction",
    "group-tables": "group_tables:GroupTables",
    "insert-quantize": "insert_quantize:InsertQuantize",
    "interpolate-windows": "interpolate_windows:InterpolateWindows",
    "lower-embedding-bag": "lower_embedding_bag:LowerEmbeddingBag",
    "merge-linears": "merge_linears:MergeLinears",
    "place-precision": "place_precision:PlacePrecision",
    "prune-and-distill": "prune_and_distill:PruneAndDistill",
    "prune-channels": "prune_channels:PruneChannels",
    "prune-tables": "prune_tables:PruneTables",
    "quantize-tables": "quantize_tables:QuantizeTables",
    "reassociate-fm": "reassociate_fm:ReassociateFm",
    "share-similar": "share_similar:ShareSimilar",
    "strip-train-only": "strip_train_only:StripTrainOnly",
}
