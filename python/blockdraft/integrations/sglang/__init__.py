"""SGLang 0.5.23: an attention backend, experts, and CCA's convolutions of its ZAYA.

    python -m sglang.launch_server --model MODEL --page-size 16 --disable-cuda-graph \\
        --attention-backend blockdraft --moe-runner-backend blockdraft

SGLang calls `register` in every process (entry point sglang.srt.plugins). Its ZAYA computes
queries, keys and values with `cca_qkv` where the attention is blockdraft's. There is no speculative
worker.
"""

__all__ = ["register"]


def register(name: str = "blockdraft") -> None:
    """Make blockdraft's kernels known to SGLang. They are used where they are asked for."""
    from sglang.srt.arg_groups import choices
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.layers.moe.moe_runner.runner import register_moe_runner_core
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from .cca import around_forward

    choices.ATTENTION_BACKEND_CHOICES.append(name)
    choices.MOE_RUNNER_BACKEND_CHOICES.append(name)
    register_attention_backend(name)(_attention)
    register_moe_runner_core(name, _experts)
    target = "sglang.srt.models.zaya.CCA.forward"
    HookRegistry.register(target, around_forward, HookType.AROUND)


def _attention(runner):
    from .attention import Backend

    return Backend(runner)


def _experts(config):
    from .experts import Runner

    return Runner(config)
