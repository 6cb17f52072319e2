"""TensorRT on NVIDIA GPUs, built by Torch-TensorRT from the exported graph."""

SLOW_BUILD = True
