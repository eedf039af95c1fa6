// How a .hip file launches its kernels. Where there are no HIP headers only its device code exists.
#pragma once

#include <stdint.h>

#if __has_include(<hip/hip_runtime_api.h>)
#define BLOCKDRAFT_HIP_RUNTIME
#include <hip/hip_runtime_api.h>

#include <stdexcept>
#include <string>

namespace blockdraft {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t groups, int threads, void* stream,
            Arguments... arguments) {
  if (groups == 0) return;
  void* pointers[] = {&arguments...};
  const hipError_t error =
      hipLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(groups), dim3(threads), pointers,
                      0, static_cast<hipStream_t>(stream));
  if (error != hipSuccess)
    throw std::runtime_error(std::string("blockdraft: launch failed: ") + hipGetErrorString(error));
}

}  // namespace blockdraft
#endif
