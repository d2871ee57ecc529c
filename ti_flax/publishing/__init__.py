"""What a run leaves for other programs and people."""
