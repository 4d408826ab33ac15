"""An explanation as a record, a sentence, a figure and a table. No model and no torch."""
