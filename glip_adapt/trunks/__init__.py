"""Frozen, pretrained detectors: the protocol of a family, the catalogue, one folder per family."""
