"""The Hugging Face Hub: the only network code."""
