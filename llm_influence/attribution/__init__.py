"""How much each event moved a prediction.

targets         the scalar that is explained: log-odds of an item or behaviour, or a contrast
value_function  the engine: the target's value with any subset of events
task            what a method is given, and what it gives back
attention, gradient  folders of methods, one family each
perturbation, references  methods, one family a file
registry        every method with its capabilities as data
explainer       Explainer: histories in, `Influence` records out
"""
