"""Batch normalization for PyTorch over a model's whole life."""
