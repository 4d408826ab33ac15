"""Good options found on validation: trials of a base run with some of its options changed.

`study.search` runs trials one after the other, `space` draws their options, `reports` tells the
study of every validation, `summary` says what came of it. docs/search.md.
"""
