"""Trains the byte-level ZAYA that ships in `blockdraft/data`: `python -m blockdraft.train OUT`."""
