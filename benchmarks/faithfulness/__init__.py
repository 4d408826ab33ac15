"""Programs that measure whether explanations are true to the model and to the data."""
