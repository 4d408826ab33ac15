"""Explain which past events of a user make a language model predict the next one.

    from llm_influence import Explainer, InfluenceModel, load_movielens_100k

    log = load_movielens_100k()
    model = InfluenceModel.from_pretrained("runs/movielens_100k")
    print(Explainer(model).explain(log["196"]))

Rooms, each importing only those before it: `errors`, `types`, `numerics`, `utils`, `config`,
`data`, `datasets`, `rendering`, `rules`, `influence`, `modeling`, `evaluation`, `training`,
`attribution`, `faithfulness`, `batch`, `analysis`, `report`, `run`, `cli`.

The public names stand in `__init__.pyi`. Each is imported from its room when it is first used, so
`import llm_influence` takes milliseconds.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
