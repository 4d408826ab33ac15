"""What `scripts/benchmark_attribution.py` is made of.

case             a history, its target, and our side of the measurement
masked_function  the function that every peer explains: masks in, log-odds out
captum_peer      Captum's methods on that function
shap_peer        shap's methods on that function
truth            exact Shapley values of short histories, a checked reference for long ones
shapley_part, loo_part, ig_part   the measurements
store            measurements kept on disk, so that a stopped run goes on
"""
