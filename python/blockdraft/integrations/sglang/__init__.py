"""SGLang 0.5.23: an attention backend, experts, and CCA's convolutions of its ZAYA.

    python -m sglang.launch_server --model MODEL --page-size 16 --disable-cuda-graph \\
        --attention-backend blockdraft --moe-runner-backend blockdraft

    ... --speculative-algorithm BLOCKDRAFT --speculative-num-draft-tokens 16 \\
        --speculative-eagle-topk 4 --disable-radix-cache

SGLang calls `register` in every process (entry point sglang.srt.plugins). Its ZAYA computes
queries, keys and values with `cca_qkv` where the attention is blockdraft's. BLOCKDRAFT decodes by
blocks, by a model whose config has a mask_token_id: so many verify rows and proposals in each pass
(by default 16 of both). Requests with grammars, penalties, biases, log-probabilities or LoRA are
aborted there.
"""

__all__ = ["register"]


def register(name: str = "blockdraft") -> None:
    """Make blockdraft's kernels known to SGLang. They are used where they are asked for."""
    from sglang.srt.arg_groups import choices
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.layers.moe.moe_runner.runner import register_moe_runner_core
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    from .algorithm import Algorithm, check_server_args, worker
    from .cca import around_forward
    from .inputs import around_logits

    choices.ATTENTION_BACKEND_CHOICES.append(name)
    choices.MOE_RUNNER_BACKEND_CHOICES.append(name)
    register_attention_backend(name)(_attention)
    register_moe_runner_core(name, _experts)
    SpeculativeAlgorithm.register(
        name.upper(),
        supports_overlap=True,
        validate_server_args=check_server_args,
        spec_class=Algorithm,
    )(worker)
    for target, hook in (
        ("sglang.srt.models.zaya.CCA.forward", around_forward),
        ("sglang.srt.layers.logits_processor.LogitsProcessor.forward", around_logits),
    ):
        HookRegistry.register(target, hook, HookType.AROUND)


def _attention(runner):
    from .attention import Backend

    return Backend(runner)


def _experts(config):
    from .experts import Runner

    return Runner(config)
