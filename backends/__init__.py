"""Backends: from a `Program` to files a runtime serves. The table is all there is here."""

#: name -> "module:Class", imported when first asked for.
BACKENDS: dict[str, str] = {
    "eager": "eager:Eager",
    "inductor": "inductor.backend:Inductor",
    "mlir": "mlir:Mlir",
    "onnx": "onnxruntime.backend:PlainOnnx",
    "onnxruntime": "onnxruntime.backend:OnnxRuntime",
    "openvino": "openvino:OpenVino",
    "tensorrt": "tensorrt.backend:TensorRT",
}
