"""Search for sentences: beams, sampling and their constraints, over any `backends.base.Stepper`."""
