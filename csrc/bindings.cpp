// Registers the C++ kernels under the schemas that blockdraft.registry defines, and nothing else. The module itself is empty:
// importing it runs the registrations.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace blockdraft {
using torch::stable::Tensor;

void block_attention_cpu(Tensor q, Tensor k, Tensor v, std::optional<Tensor> k_cache, std::optional<Tensor> v_cache,
                         std::optional<Tensor> block_table, Tensor cu_rows, Tensor prefix_lens, Tensor draft_len, Tensor branch,
                         int64_t mask_rows, bool bidirectional, int64_t max_rows, int64_t max_prefix, double scale,
                         int64_t window, int64_t split, Tensor out, std::optional<Tensor> lse, std::optional<Tensor> workspace);

}  // namespace blockdraft

STABLE_TORCH_LIBRARY_IMPL(blockdraft, CPU, m) {
  m.impl("block_attention_cpp", TORCH_BOX(&blockdraft::block_attention_cpu));
}

extern "C" PyObject* PyInit__ops() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ops", "C++ kernels of blockdraft", -1, nullptr};
  return PyModule_Create(&module);
}
