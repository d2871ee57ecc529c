"""Training pictures: from a folder to VAE moments."""
