"""Compiling a run for TPUs that nobody holds."""
