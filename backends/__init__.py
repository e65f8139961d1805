"""Backends: from a `Program` to files a runtime serves. The table is all there is here."""

#: name -> "module:Class", imported when first asked for.
BACKENDS: dict[str, str] = {
    "eager": "eager:Eager",
    "inductor": "inductor.backend:Inductor",
    "mlir": "mlir:Mlir",
    "onnx": "onnx.backend:PlainOnnx",
    "onnxruntime": "onnxruntime.backend:OnnxRuntime",
    "openvino": "openvino:OpenVino",
    "tensorrt": "tensorrt.backend:TensorRT",
}

#: What opens the artifacts of those that build with more than they run with.
RUNTIMES: dict[str, str] = {
    "onnx": "onnx.runtime:EmulatedRuntime",
    "onnxruntime": "onnxruntime.runtime:OrtRuntime",
    "openvino": "openvino_runtime:OpenVinoRuntime",
    "tensorrt": "tensorrt.runtime:TensorRTRuntime",
}
