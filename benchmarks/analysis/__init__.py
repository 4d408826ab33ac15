"""Programs that measure the analysis of influence tables."""
