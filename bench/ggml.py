"""ggml's experts (llama.cpp's `mul_mat_id`), called through ctypes, where its libraries are on the
loader's path: LD_LIBRARY_PATH, or an installed package. Its interface is that of ggml 0.9 to 0.21.
"""

import ctypes
from collections.abc import Callable
from ctypes import c_bool, c_int, c_int64, c_size_t, c_void_p
from functools import cache

import torch

# enum ggml_type
TYPES = {torch.float32: 0, torch.float16: 1, torch.int32: 26, torch.bfloat16: 30}
OVERHEAD = 1 << 20  # bytes for the descriptions of tensors and of the graph

BASE = {  # name: (result, arguments)
    "ggml_new_tensor_3d": (c_void_p, (c_void_p, c_int, c_int64, c_int64, c_int64)),
    "ggml_new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "ggml_mul_mat_id": (c_void_p, (c_void_p,) * 4),
    "ggml_swiglu": (c_void_p, (c_void_p,) * 2),
    "ggml_mul": (c_void_p, (c_void_p,) * 3),
    "ggml_new_graph": (c_void_p, (c_void_p,)),
    "ggml_build_forward_expand": (None, (c_void_p,) * 2),
    "ggml_backend_alloc_ctx_tensors": (c_void_p, (c_void_p,) * 2),
    "ggml_backend_tensor_alloc": (c_int, (c_void_p,) * 3),
    "ggml_backend_graph_compute": (c_int, (c_void_p,) * 2),
    "ggml_get_data": (c_void_p, (c_void_p,)),
    "ggml_backend_cpu_buffer_from_ptr": (c_void_p, (c_void_p, c_size_t)),
}
CPU = {
    "ggml_backend_cpu_init": (c_void_p, ()),
    "ggml_backend_cpu_set_n_threads": (None, (c_void_p, c_int)),
}


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


@cache
def libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """Raises ImportError where there are none."""
    try:
        base = ctypes.CDLL("libggml-base.so", mode=ctypes.RTLD_GLOBAL)
        cpu = ctypes.CDLL("libggml-cpu.so")
    except OSError as error:
        raise ImportError(str(error)) from error
    base.ggml_init.restype, base.ggml_init.argtypes = c_void_p, (InitParams,)
    for library, functions in ((base, BASE), (cpu, CPU)):
        for name, (result, arguments) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    return base, cpu


def experts(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> Callable[[], torch.Tensor]:
    """Arguments as those of ops.fused_moe, of one choice. The weights are shared, not copied;
    tokens and the result are fp32, as ggml has them."""
    base, cpu = libraries()
    backend = cpu.ggml_backend_cpu_init()
    cpu.ggml_backend_cpu_set_n_threads(backend, torch.get_num_threads())
    context = base.ggml_init(InitParams(OVERHEAD, None, True))
    kept = []  # the memory that ggml's tensors point to

    def tensor(value: torch.Tensor) -> int:
        sizes = value.shape[::-1]
        kept.append(value)
        new = base.ggml_new_tensor_3d if value.dim() == 3 else base.ggml_new_tensor_2d
        made = new(context, TYPES[value.dtype], *sizes)
        buffer = base.ggml_backend_cpu_buffer_from_ptr(value.data_ptr(), value.nbytes)
        base.ggml_backend_tensor_alloc(buffer, made, value.data_ptr())
        return made

    T, hidden = x.shape
    tokens = tensor(x.float()[:, None].contiguous())
    index = tensor(experts.contiguous())
    both = base.ggml_mul_mat_id(context, tensor(gate_up), tokens, index)
    inner = base.ggml_swiglu(context, both)
    y = base.ggml_mul_mat_id(context, tensor(down), inner, index)
    y = base.ggml_mul(context, y, tensor(weights[:, None].contiguous()))
    graph = base.ggml_new_graph(context)
    base.ggml_build_forward_expand(graph, y)
    base.ggml_backend_alloc_ctx_tensors(context, backend)
    memory = (ctypes.c_float * (T * hidden)).from_address(base.ggml_get_data(y))
    out = torch.frombuffer(memory, dtype=torch.float32).view(T, hidden)

    def run() -> torch.Tensor:
        if base.ggml_backend_graph_compute(backend, graph) != 0 or not kept:
            raise RuntimeError("ggml_backend_graph_compute failed")
        return out

    return run
