"""Prompts, words and the rows that stand for them."""
