"""What makes behaviour count, from influence tables alone; needs no model and no torch.

tables      influence tables larger than memory as one view with derived columns
buckets     the ranges into which gaps, ages, positions, hours and sessions are cut
output      an analysis as JSON, CSV and figures
"""
