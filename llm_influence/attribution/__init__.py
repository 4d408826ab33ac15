"""How much each event moved a prediction."""
