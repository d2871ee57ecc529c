"""The noising process, and the samplers that run it backwards."""
