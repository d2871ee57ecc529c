"""A run from its configuration to the learned rows."""
