"""The supervised baseline of GLIP: its detector without language, DyHead (arXiv 2106.08322)."""
