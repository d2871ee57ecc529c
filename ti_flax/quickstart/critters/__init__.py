"""The world that the embedded model knows: its drawing and its names."""
