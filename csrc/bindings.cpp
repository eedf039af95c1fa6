// Registers the C++ kernels under the schemas that blockdraft.registry defines, and nothing else.
// The module only says on which devices they run; importing it runs the registrations.
#include <Python.h>
#include <torch/csrc/stable/library.h>

namespace blockdraft {

using Library = torch::stable::detail::StableLibrary;

void register_accept_drafts(Library&);
void register_block_attention(Library&);
void register_commit(Library&);
void register_sample_drafts(Library&);

static void register_ops(Library& library) {
  register_accept_drafts(library);
  register_block_attention(library);
  register_commit(library);
  register_sample_drafts(library);
}

}  // namespace blockdraft

STABLE_TORCH_LIBRARY_IMPL(blockdraft, CPU, library) { blockdraft::register_ops(library); }
#ifdef BLOCKDRAFT_HIP
STABLE_TORCH_LIBRARY_IMPL(blockdraft, CUDA, library) { blockdraft::register_ops(library); }
#endif

#define BLOCKDRAFT_JOIN(a, b) a##b
#define BLOCKDRAFT_INIT(module) BLOCKDRAFT_JOIN(PyInit_, module)
#define BLOCKDRAFT_TEXT(x) #x
#define BLOCKDRAFT_NAME(module) BLOCKDRAFT_TEXT(module)

extern "C" PyObject* BLOCKDRAFT_INIT(BLOCKDRAFT_MODULE)() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, BLOCKDRAFT_NAME(BLOCKDRAFT_MODULE),
                                   "C++ kernels of blockdraft", -1, nullptr};
  PyObject* module = PyModule_Create(&definition);
#ifdef BLOCKDRAFT_HIP
  PyModule_AddStringConstant(module, "devices", "cpu cuda");
#else
  PyModule_AddStringConstant(module, "devices", "cpu");
#endif
  return module;
}
