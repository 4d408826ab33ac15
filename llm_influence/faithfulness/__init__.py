"""Whether influence is true: metrics, and methods compared."""
