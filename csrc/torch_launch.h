// What the torch side of every op shares: data pointers, dispatch by element type and by device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "parallel.h"
#include "tile/tile.h"

#ifdef BLOCKDRAFT_HIP
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(
    int32_t device, void** stream);  // ROCm has it, shim.h only for CUDA
#endif

namespace blockdraft {

template <class T>
T* data(const torch::stable::Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

template <class T>
T* data_or_null(const std::optional<torch::stable::Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

inline int64_t item_size(const torch::stable::Tensor& t) {
  return t.scalar_type() == torch::headeronly::ScalarType::Float ? 4 : 2;
}

// f(float{} | bf16{} | fp16{}) by t's element type.
template <class F>
void for_float_type(const torch::stable::Tensor& t, F f) {
  switch (t.scalar_type()) {
    case torch::headeronly::ScalarType::Float:
      return f(float{});
    case torch::headeronly::ScalarType::BFloat16:
      return f(bf16{});
    case torch::headeronly::ScalarType::Half:
      return f(fp16{});
    default:
      STD_TORCH_CHECK(false, "expected float32, bfloat16 or float16");
  }
}

inline void torch_threads(int64_t n, int64_t grain,
                          const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, n, grain, body);
}

#ifdef BLOCKDRAFT_HIP
inline void* current_stream(const torch::stable::Tensor& t) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(t.get_device(), &stream) == 0,
                  "no current stream");
  return stream;
}
#define BLOCKDRAFT_LAUNCH(tensor, op, ...)                           \
  (tensor).is_cuda() ? op##_hip(__VA_ARGS__, current_stream(tensor)) \
                     : op##_host(__VA_ARGS__, Parallel(torch_threads))
#else
#define BLOCKDRAFT_LAUNCH(tensor, op, ...) op##_host(__VA_ARGS__, Parallel(torch_threads))
#endif

}  // namespace blockdraft
