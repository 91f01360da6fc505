"""Frozen, pretrained detectors: what they have in common, which there are, and one folder per family."""
