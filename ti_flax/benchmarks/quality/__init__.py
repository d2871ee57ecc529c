"""How well words are learned, on a world whose truth is known."""
