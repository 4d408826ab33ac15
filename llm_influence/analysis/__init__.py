"""What makes behaviour count, from influence tables alone; needs no model and no torch.

tables        influence tables larger than memory as one view (columns: what it derives)
buckets       the ranges into which gaps, ages, positions, hours and sessions are cut
side_tables   items and users beside the influence tables
levels        columns of the view cut into few levels: factors
coded         every event as a few small integers, on disk
factors       the analysis: regression, permutation, interactions, weights, factor_figures
attribution   conversions laid to channels: touch, outcomes, paths, bootstrap, attribution_figures
output        an analysis as JSON, CSV and figures
"""
