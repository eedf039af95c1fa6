// How a .hip file starts its kernels. A build by a clang without HIP has only the device code and
// defines BLOCKDRAFT_FREESTANDING; testing for HIP's headers would not do, since they may be on the
// include path of a compiler that cannot use them.
#pragma once

#include <stdint.h>

// Only the host's pass has launchers: none of its functions can be called on the device.
#if !defined(BLOCKDRAFT_FREESTANDING) && !defined(__HIP_DEVICE_COMPILE__)
#define BLOCKDRAFT_HIP_RUNTIME
#include <hip/hip_runtime_api.h>

#include <stdexcept>
#include <string>

#include "base/device.h"

namespace blockdraft {

template <class Params>
void start(void (*kernel)(Params), int64_t groups, int threads, Stream stream, Params params) {
  if (groups == 0) return;
  void* arguments[] = {&params};
  const hipError_t error =
      hipLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(groups), dim3(threads), arguments,
                      0, static_cast<hipStream_t>(stream.handle));
  if (error != hipSuccess)
    throw std::runtime_error(std::string("blockdraft: launch failed: ") + hipGetErrorString(error));
}

}  // namespace blockdraft
#endif
