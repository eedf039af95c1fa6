// What all torch.cpp share: views of tensors, dispatch by element type and by device, and
// registration.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <map>
#include <optional>
#include <string>

#include "base/device.h"
#include "base/formats.h"
#include "base/numbers.h"
#include "base/parallel.h"
#include "ops/rows.h"

#ifdef BLOCKDRAFT_HIP
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
// ROCm's libtorch defines this function, but shim.h declares it only for CUDA.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace blockdraft {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}
template <class T>
T* data(const Optional& t) {
  return t ? data<T>(*t) : nullptr;
}

template <class T, int kStrides>
View<T, kStrides> view(const Tensor& t) {
  View<T, kStrides> out{data<T>(t), {}};
  for (int d = 0; d < kStrides; ++d) out.stride[d] = t.stride(d);
  return out;
}
template <class T, int kStrides>
View<T, kStrides> view(const Optional& t) {
  return t ? view<T, kStrides>(*t) : View<T, kStrides>{};
}

inline Rows rows_of(const Tensor& cu_rows, const Tensor& prefix_lens, const Tensor& draft_len,
                    const Tensor& branch, int64_t mask_rows, bool bidirectional, int64_t max_rows,
                    int64_t max_prefix) {
  return {.cu_rows = data<int32_t>(cu_rows),
          .prefix_lens = data<int32_t>(prefix_lens),
          .draft_len = data<int32_t>(draft_len),
          .branch = view<const int32_t, 1>(branch),
          .mask_rows = int(mask_rows),
          .bidirectional = bidirectional,
          .max_rows = int(max_rows),
          .max_prefix = int(max_prefix),
          .batch = int(prefix_lens.size(0)),
          .proposals = int(branch.size(1))};
}

inline int64_t item_size(const Tensor& t) {
  return t.scalar_type() == torch::headeronly::ScalarType::Float ? 4 : 2;
}

// Calls f with a float, bf16 or fp16, by t's element type.
template <class F>
void for_float_type(const Tensor& t, F f) {
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

// Calls f with what a cache is made of: fp8, else `type`.
template <class T, class F>
void for_cache_type(const Optional& cache, T type, F f) {
  if (!cache) return f(type);
  switch (cache->scalar_type()) {
    case torch::headeronly::ScalarType::Float8_e4m3fn:
      return f(e4m3fn{});
    case torch::headeronly::ScalarType::Float8_e4m3fnuz:
      return f(e4m3fnuz{});
    default:
      return f(type);
  }
}

// If not null, launches store their parameters here instead of running, so that tests get the
// parameters as torch.cpp fills them.
inline std::string* recorder = nullptr;

inline void on_torch_threads(int64_t n, int64_t grain, const Parallel::Part& body) {
  torch::stable::parallel_for(0, n, grain, body);
}

// Whether the parameters were stored instead.
template <class Params>
bool stored(const Params& p) {
  if (recorder) recorder->assign(reinterpret_cast<const char*>(&p), sizeof p);
  return recorder;
}

// Launches on the CPU.
template <class Params>
void launch_on_threads(const Params& p) {
  if (!stored(p)) launch(p, Parallel{on_torch_threads, int(torch::stable::get_num_threads())});
}

// Launches on the device of `t`, which need not be the current one.
template <class Params>
void launch_on_device_of(const Tensor& t, const Params& p) {
#ifdef BLOCKDRAFT_HIP
  if (t.is_cuda()) {
    if (stored(p)) return;
    const torch::stable::accelerator::DeviceGuard guard(t.get_device_index());
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == 0,
                    "no current stream");
    return launch(p, Stream{stream});
  }
#endif
  launch_on_threads(p);
}

// The torch schema's name for a C++ argument type.
template <class T>
constexpr const char* kSchemaType = nullptr;
template <>
inline constexpr const char* kSchemaType<Tensor> = "Tensor";
template <>
inline constexpr const char* kSchemaType<Optional> = "Tensor?";
template <>
inline constexpr const char* kSchemaType<int64_t> = "int";
template <>
inline constexpr const char* kSchemaType<double> = "float";
template <>
inline constexpr const char* kSchemaType<bool> = "bool";

template <class... Arguments>
std::string signature(void (*)(Arguments...)) {
  std::string out;
  ((out += out.empty() ? "" : ", ", out += kSchemaType<Arguments>), ...);
  return out;
}

// The signatures of the ops that this extension implements. The stable ABI does not compare them
// with the schemas, so blockdraft.ops does at import.
inline std::map<std::string, std::string>& signatures() {
  static std::map<std::string, std::string> all;
  return all;
}

#define BLOCKDRAFT_REGISTER(library, op)      \
  signatures()[#op] = signature(&op##_torch); \
  (library).impl(#op "_cpp", TORCH_BOX(&op##_torch));

}  // namespace blockdraft
