"""Faithfulness: metrics that test whether attribution scores are true, and methods compared."""
