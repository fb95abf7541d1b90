"""From unlabelled volumes to a dataset: models propose, people correct what matters, and what holds is released."""
