"""How fast many concepts are learned in a queue, and how well, beside one at a time."""
