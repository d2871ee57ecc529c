"""Stable Diffusion as Flax modules, and its weights."""
