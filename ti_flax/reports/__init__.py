"""What a run shows of itself: numbers, pictures, a page."""
