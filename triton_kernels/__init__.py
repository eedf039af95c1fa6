"""Triton kernels, one file an op; installed as blockdraft.triton_kernels."""
