"""Model runners over `blockdraft.ops`."""
