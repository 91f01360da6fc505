"""Grounding DINO, arXiv 2303.05499, and its children: queries that read a fused image and caption."""
