"""PyTorch as it comes: one kernel after another."""
