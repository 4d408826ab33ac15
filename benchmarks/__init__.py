"""Programs that measure: every figure of the docs comes from one of them.

Run them from the root of the repository, as in ``python -m benchmarks.training.ablations``.
"""
