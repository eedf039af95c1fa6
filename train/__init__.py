"""Makes the tiny ZAYA of `blockdraft/data`: `python -m blockdraft.train run OUT`."""
