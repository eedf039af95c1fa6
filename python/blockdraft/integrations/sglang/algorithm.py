"""BLOCKDRAFT among SGLang's speculative algorithms; imported when SGLang loads its plugins."""

from typing import Any

from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from ...contract import Check
from ...layout import BlockLayout

CHECK = Check("blockdraft for SGLang")


class Algorithm(CustomSpecAlgo):
    """V = K + 1 verify rows are --speculative-num-draft-tokens, the proposals
    --speculative-eagle-topk. Drafts write no keys or values."""

    def has_draft_kv(self) -> bool:
        return False

    def need_topk(self) -> bool:
        return False

    def carries_draft_hidden_states(self) -> bool:
        return False

    def create_future_map(
        self,
        device: Any,
        req_to_token_pool: Any,
        needs_cpu_seq_lens: bool = True,
        needs_confidence_relay: bool = False,
    ) -> Any:
        """As the scheduler asks of every algorithm; SGLang's base class for plugins lacks it."""
        from sglang.srt.managers.overlap_utils import FutureMap

        return FutureMap(
            device, self, req_to_token_pool, needs_cpu_seq_lens, needs_confidence_relay
        )

    def handle_server_args(self, server_args: Any) -> None:
        """Fill in what was left open."""
        verify_rows = server_args.speculative_num_draft_tokens or 16
        server_args.speculative_num_draft_tokens = verify_rows
        server_args.speculative_eagle_topk = server_args.speculative_eagle_topk or verify_rows
        server_args.speculative_num_steps = 1  # the scheduler's least; a pass is one step

    def get_num_tokens_per_req_for_target_verify(
        self, num_draft_tokens: int, is_draft_worker: bool
    ) -> int:
        from sglang.srt.runtime_context import get_spec

        return layout(num_draft_tokens, get_spec().speculative_eagle_topk).rows


def layout(verify_rows: int, proposals: int) -> BlockLayout:
    return BlockLayout.tidar(verify_rows, P=proposals)


def check_server_args(server_args: Any) -> None:
    """Refuse what the worker does not do, before anything is loaded."""
    need, name = CHECK.need, server_args.attention_backend
    need(name == "blockdraft", "--attention-backend", "blockdraft", name)
    need(server_args.disable_radix_cache, "--disable-radix-cache", "given", "not")
    for field in ("pp_size", "attn_dp_size"):
        need(getattr(server_args, field) == 1, field, "1", getattr(server_args, field))
    for field in ("enable_lora", "enable_mixed_chunk", "speculative_adaptive"):
        need(not getattr(server_args, field), field, "off", "on")


def worker(server_args: Any) -> type:
    from .worker import Worker

    return Worker
