// Which device a launch on another than the current one goes to: ops/torch.h as a ROCm build
// compiles it, on stand-ins for libtorch's functions, with device 0 current and a tensor on
// device 1.
#include <cstdio>

#include "ops/torch.h"

namespace {

int current = 0;
int tensor_object;

}  // namespace

extern "C" {
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) {
  *type = aoti_torch_device_type_cuda();
  return 0;
}
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) {
  *index = 1;
  return 0;
}
AOTITorchError aoti_torch_create_device_guard(int32_t index, DeviceGuardHandle* guard) {
  *guard = reinterpret_cast<DeviceGuardHandle>(&current);
  current = index;
  return 0;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) {
  current = 0;
  return 0;
}
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = reinterpret_cast<void*>(intptr_t(100 + device));
  return 0;
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle) { return 0; }
}

namespace blockdraft {

struct Params {};

static void launch(const Params&, Parallel) { std::puts("launched on the CPU"); }

static void launch(const Params&, Stream stream) {
  std::printf("launched with device %d current, on stream %ld\n", current,
              long(reinterpret_cast<intptr_t>(stream.handle)));
}

}  // namespace blockdraft

int main() {
  const torch::stable::Tensor tensor(reinterpret_cast<AtenTensorHandle>(&tensor_object));
  blockdraft::launch_on_device_of(tensor, blockdraft::Params{});
  std::printf("device %d current afterwards\n", current);
}
