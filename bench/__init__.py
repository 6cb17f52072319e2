"""Measures how ResNet-50 trains and serves on this machine, and says how sure it is."""

__version__ = "0.1.0"
