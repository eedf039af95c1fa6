"""Where the torch operators live: torch.ops.<NAMESPACE>. A kernels-hub build sets its own."""

NAMESPACE = "blockdraft"
