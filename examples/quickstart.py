"""Explain one recommendation of the demo's model. Run `llm-influence demo` first.

python examples/quickstart.py [RUN_FOLDER] [USER]
"""

import sys

from llm_influence import Explainer, Influence, InfluenceModel, load_movielens_100k


def main(folder: str = "runs/movielens_100k", user: str = "196") -> Influence:
    """Print the recommendations of a user, and the events behind the first one."""
    log = load_movielens_100k()
    model = InfluenceModel.from_pretrained(folder)
    for recommendation in model.recommend(log[user], k=5):
        print(f"{recommendation.probability:.1%}  {recommendation.title}")
    influence = Explainer(model).explain(log[user])
    print(influence)
    print(influence.to_text())
    return influence


if __name__ == "__main__":
    main(*sys.argv[1:])
