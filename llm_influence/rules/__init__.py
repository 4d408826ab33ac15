"""Rules behind a model: which items they concern after a history, and what they change.

conditions  what one test says of a history and of every item
book        rules bound to a catalogue: changes of scores
trace       which rule changed which recommendation
"""
