"""The jitted train step."""
