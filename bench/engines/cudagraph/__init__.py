"""A whole forward pass captured once as a CUDA graph and launched as one."""
