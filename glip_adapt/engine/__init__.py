"""A trunk with an adapter at work: features, training, prediction, evaluation."""
