"""How much each event moved a prediction.

targets         the scalar that is explained: log-odds of an item or behaviour, a contrast, a slate
slate           how much of a list of recommendations is left, in its order
value_function  the engine: the target's value with any subset of events
task            what a method is given, and what it gives back
attention, gradient  folders of methods, one family each
perturbation, references  methods, one family a file
registry        every method with its capabilities as data
quality         the card: what is measured about an explanation, beside it
matrix          every event on every later prediction
adapter_effect  what fine-tuning changed: the adapter on and off
explainer       Explainer: histories in, `Influence` records out
"""
