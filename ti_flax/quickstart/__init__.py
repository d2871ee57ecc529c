"""The embedded quickstart model: its world of critters and its training."""
