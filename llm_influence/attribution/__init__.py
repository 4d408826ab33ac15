"""How much each event moved a prediction.

targets         the scalar that is explained: log-odds of an item or behaviour, or a contrast
value_function  the engine: the target's value with any subset of events
task            what a method is given, and what it gives back
attention, gradient, perturbation, references   the methods, one family a file
shapley         exact, sampled and permutation Shapley values; coarse, surrogate   more of the kind
  shapley_sampling      budget, rounds, stopping;   shapley_regression   the linear surrogate
  coalitions            sets of players, their weights and how they are drawn
  coalition_process     a Gaussian process over them;   coalition_kernel   its covariance
interactions    pairs of events;   counterfactual   the fewest events that change the answer
registry        every method with its capabilities as data
explainer       Explainer: histories in, `Influence` records out
"""
