"""Frontends: from a model to a `Program`. The table is all there is here."""

#: The end of a file's name -> the module that reads it; a module in memory has none. All are
#: imported when first asked for.
FRONTENDS: dict[str, str] = {
    "": "export",
    ".pt2": "exported_file",
    ".onnx": "onnx.file",
}
