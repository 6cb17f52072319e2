"""ONNX Runtime: the CPU's provider, on a GPU the CUDA or the TensorRT provider."""

MODES = {
    "tensorrt": "on a GPU, TensorRT's provider before the others",
}
