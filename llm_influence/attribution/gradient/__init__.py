"""Methods that follow the target's gradient with respect to the input vectors.

baseline     where a path begins
path         values and gradients at any input vectors, in batches
parts        what of an event's vectors moved: sums to events or to fields of events
sampling     means of random draws and the error that they leave
first_order  saliency, input x gradient, SmoothGrad: gradients at the input itself
simpson      adaptive quadrature whose error is known on every interval
integrated   integrated gradients
event_path   integrated gradients along a path on which one event enters after the other
expected     expected gradients: baselines drawn at random
"""

from llm_influence.attribution.gradient import event_path, expected, first_order, integrated

__all__ = ["event_path", "expected", "first_order", "integrated"]
