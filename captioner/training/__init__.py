"""Training: from captioned photos to a model file."""
