"""How the numerical work is carried out: precision, compilation, CUDA graphs, kernels."""
