"""Long work over many users, on any number of processes, that survives being killed.

batch         explain every user of a log into Parquet shards
faithfulness  measure methods beside each other, user by user
flips         every user read again with one feature changed
side_tables   items and users beside the shards, for analysis without the model
plan          what a folder of shards was asked to hold, so that a resumed run continues it
"""
