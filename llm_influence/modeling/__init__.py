"""The model: backbone, adapter, unit vectors and heads; saved and loaded as one folder.

backbone   a pretrained transformer from a packaged asset, a folder or the hub
recurrent  GRU, LSTM and the gated recurrence in the backbone's place
gates      what the recurrence lets through at each event
adapters   what is trained inside it: one file a kind
masks      who may attend to whom: every position predicts from its own past alone
text_vectors  what the backbone makes of texts; written once, never trained
units      vectors of items (and of every unit of style token): words' part plus residual
heads      scores of the next item and the next behaviour
feedback   the head that predicts labels, and what its scores mean
neighbors  what items get of the vectors of items that share facts with them
scoring    the whole catalogue in chunks: ranks, the best items, their log-odds
recommendation  the best items, with names, odds and the rules that moved them
model      InfluenceModel: all of it behind one interface
build      one put together from a configuration and a log
ruled      what the rules changed among recommendations
probe      refuses a backbone that would see the future
growing    a history followed event by event, through the KV cache
scratch    a tokenizer and a small decoder of one's own
devices    whether there is an accelerator
folder     safetensors and JSON on disk
"""
