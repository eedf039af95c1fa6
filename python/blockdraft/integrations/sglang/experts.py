"""SwiGLU experts of SGLang's MoE layers; it is imported when SGLang asks for the runner."""

from typing import Any

from sglang.srt.layers.moe.moe_runner.base import DispatchMoeRunnerCore
from sglang.srt.layers.moe.token_dispatcher.standard import StandardCombineInput
from sglang.srt.layers.moe.utils import resolve_moe_runner_backend

from ... import ops
from ...contract import Check

CHECK = Check("blockdraft experts for SGLang")


class Runner(DispatchMoeRunnerCore):
    @property
    def runner_backend(self) -> Any:
        return resolve_moe_runner_backend("blockdraft")

    def run_from_dispatch(
        self, dispatch_output: Any, quant_info: Any, runner_config: Any, hooks: Any = None
    ) -> Any:
        """A choice of weight 0, or of no expert here, is a skip."""
        _refuse(quant_info, runner_config, hooks)
        choices, experts = dispatch_output.topk_output, len(quant_info.w13_weight)
        ids, weights = choices.topk_ids, choices.topk_weights.float()
        if runner_config.routed_scaling_factor is not None:
            weights = weights * runner_config.routed_scaling_factor
        skipped = (ids < 0) | (ids >= experts) | (weights == 0)
        y = ops.fused_moe(
            dispatch_output.hidden_states,
            ids.masked_fill(skipped, -1).int(),
            weights,
            quant_info.w13_weight,
            quant_info.w2_weight,
        )
        return StandardCombineInput(hidden_states=y)


def _refuse(quant_info: Any, config: Any, hooks: Any) -> None:
    CHECK.need(hooks is None, "hooks", "None (no LoRA)", hooks)
    kind = config.activation, config.is_gated
    CHECK.need(kind == ("silu", True), "activation, is_gated", "silu, True", kind)
    for name in ("apply_router_weight_on_input", "no_combine"):
        CHECK.need(not getattr(config, name), name, "False", True)
    for name in ("gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit", "swiglu_limit"):
        CHECK.need(getattr(config, name) is None, name, "None", getattr(config, name))
    for name in ("b13", "b2", "w13_scale", "w2_scale"):
        CHECK.need(getattr(quant_info, name) is None, name, "None", "a tensor")
    CHECK.need(not quant_info.fuse_swiglu_interleaved, "w13", "gate rows, then up rows", "others")
