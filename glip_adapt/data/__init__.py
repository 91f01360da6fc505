"""Datasets on disk: read images and boxes into splits, check and fetch them, render the synthetic sets."""
