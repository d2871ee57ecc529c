"""The keys of a run: their types, YAML and command line."""
