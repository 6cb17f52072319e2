"""Samples → estimates. Knows nothing of benchmarks, devices or files."""
