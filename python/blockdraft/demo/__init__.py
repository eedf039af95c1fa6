"""`blockdraft demo`: the shipped byte-level ZAYA completes a file that it was never trained on."""
