"""How good predictions are. Knows predictions, not attribution.

ranking     ranks, HR@K, NDCG@K, MRR over the whole catalogue
baselines   popularity and item-kNN, scored through the same protocol
"""
