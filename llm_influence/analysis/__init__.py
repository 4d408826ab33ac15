"""What makes behaviour count, from influence tables alone; needs no model and no torch."""
