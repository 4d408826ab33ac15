"""Rules behind a model: which items they exclude or boost."""
