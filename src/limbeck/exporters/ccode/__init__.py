"""What the C target writes: statements, kernels, layers, and the guard."""
