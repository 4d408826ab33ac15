"""An explanation as a record, a table, a sentence and a figure. Data and words only, no model."""

from llm_influence.influence.record import Influence, Player, QualityCard

__all__ = ["Influence", "Player", "QualityCard"]
