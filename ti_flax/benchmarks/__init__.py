"""Speed of a step and of its kernels, beside PyTorch."""
