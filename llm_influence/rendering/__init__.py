"""From a history to tokens that know which event and field they belong to.

    template   what is written about an event, as data (YAML)
    gaps       human words for the time between events
    clock      the hour and the weekday of an event
    times      which time it is that an item occurs
    lexicon    codes and words of every field: behaviours, gaps, values, items, user features
    wording    the text of a history, piece by piece
    pieces     each distinct piece of text (or unit) rendered once: words -> token ids
    encoder    histories -> ragged arrays of tokens with their event and field map
    batch      ragged arrays -> padded tensors

Only `batch` needs torch.
"""
