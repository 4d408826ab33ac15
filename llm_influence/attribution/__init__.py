"""How much each event moved a prediction.

targets         the scalar that is explained: log-odds of an item or behaviour, a contrast, a slate
slate           how much of a list of recommendations is left, in its order
players         who gets a score: events, or the fields of events
renderings      what the model reads when only some players are there: drop, mask, replace
neutral         the vector of a token that says nothing in particular
engine          states after renderings, each read once; `budget` cuts them into batches
  prefixes, prefix_reader   renderings that begin alike as a tree, read path by path
  beginnings                whether a backbone lets that be, found out by asking it
value_function  the target's value with any subset of the players
task            what a method is given, and what it gives back
registry        every method with its capabilities as data
attention, gradient     folders of methods, one family each
perturbation, surrogate, references   methods that remove; a sparse linear model; reference points
shapley         exact, sampled and permutation Shapley values; `coarse` for long histories
  shapley_sampling      budget, rounds, stopping;   shapley_regression   the linear surrogate
  coalitions            sets of players, their weights and how they are drawn;   `draws` by user
  coalition_process     a Gaussian process over them;   coalition_kernel   its covariance
interactions    pairs of events;   counterfactual   the fewest events that change the answer
quality         the card: what is measured about an explanation, beside it
matrix          every event on every later prediction
adapter_effect  what fine-tuning changed: the adapter on and off
explainer       Explainer: histories in, `Influence` records out
"""
