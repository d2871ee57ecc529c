"""Images from prompts and learned words."""
