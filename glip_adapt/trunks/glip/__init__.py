"""The GLIP family, arXiv 2112.03857."""
