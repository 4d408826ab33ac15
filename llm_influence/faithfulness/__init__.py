"""Whether scores mean what they say: metrics of influence, and methods beside each other.

game          N histories as games: values and ranks of sets of events, and one method's scores
ranks         the target's place among its alternatives, as another value of a set of events
metrics/      every metric, one family a file, and their registry
contenders    what is compared: methods of the registry with their options, or any function
shared        one value function for all that is compared, passes counted for each
jitter        histories whose gaps are a little off
evaluation    evaluate_faithfulness: every metric of every method for every user
result        means, paired bootstrap intervals and differences of what was measured
table, plot   the same as Markdown, CSV and a picture
recovery      known causes found again, where a log was made by a known law
sanity        do the scores change when the model's weights are scrambled?
"""
