"""Colours and markers of every figure: they stay apart for the colour-blind and in grey print."""

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours (2008); markers tell lines apart without them."""
REFERENCE = "#8A8F98"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
