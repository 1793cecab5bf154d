"""Search for sentences: drives the decoder step by step. Knows no images."""
