"""torch.compile with the Inductor backend; for inference the weights are frozen."""

SLOW_BUILD = True
MODES = {
    "max-autotune": "several kernels are timed for each product, the fastest is taken",
}
