"""Sparse skill vectors in fewer bytes."""
