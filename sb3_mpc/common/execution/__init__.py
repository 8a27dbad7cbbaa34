"""How computations are executed: precision, compilation, CUDA graphs, kernels."""
