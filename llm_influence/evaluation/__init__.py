"""How good predictions are. Knows predictions, not attribution.

ranking     ranks, HR@K, NDCG@K, MRR over the whole catalogue
exposure    how much of the catalogue is recommended, and how popular it is
feedback    AUC, GAUC, log loss, calibration; errors of values
behaviors   accuracy, macro F1, log loss
heads       all of these for the heads of one model, from one pass
choice      which metric chooses the epoch
baselines   popularity and item-kNN, scored through the same protocol
"""
