"""torch.compile with the Inductor backend; for inference the weights are frozen."""
