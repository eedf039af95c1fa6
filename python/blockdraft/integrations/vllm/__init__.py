"""vLLM 0.33: an attention backend for its V1 engine, which is also a plugin.

    vllm serve MODEL --attention-backend CUSTOM

vLLM calls `register` in every process (entry point vllm.general_plugins). Causal decoders with a
cache of the model's dtype are served; draft blocks are, where a ModelState names them (see
`attention.Builder.build`). There is no model class of ZAYA here, hence no ModelState of our own.
"""

__all__ = ["register"]


def register() -> None:
    """Make blockdraft's attention known to vLLM as CUSTOM. It is used where it is asked for."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CUSTOM, f"{__name__}.attention.Backend")
