"""Whether scores mean what they say: metrics that test influence."""
