"""The PyTorch that trained the embedded model; not in the wheel."""
