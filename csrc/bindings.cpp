// Importing this module registers the C++ kernels under the schemas of blockdraft.registry. Its
// attributes (devices, signatures, sizes) let blockdraft.ops check that both sides agree.
#include <Python.h>

#include "ops/cca_qkv/params.h"
#include "ops/sampling/workspace.h"
#include "ops/torch.h"
#include "ops/zaya_router/params.h"

namespace blockdraft {

using Library = torch::stable::detail::StableLibrary;

void register_accept_drafts(Library&);
void register_block_attention(Library&);
void register_cca_qkv(Library&);
void register_commit(Library&);
void register_fused_moe(Library&);
void register_linear(Library&);
void register_moe_dispatch(Library&);
void register_residual_norm(Library&);
void register_sample_drafts(Library&);
void register_zaya_router(Library&);

static void register_ops(Library& library) {
  register_accept_drafts(library);
  register_block_attention(library);
  register_cca_qkv(library);
  register_commit(library);
  register_fused_moe(library);
  register_linear(library);
  register_moe_dispatch(library);
  register_residual_norm(library);
  register_sample_drafts(library);
  register_zaya_router(library);
}

static std::string recorded;

// record(True): launches store their parameters instead of running; record(False): they run.
static PyObject* record(PyObject*, PyObject* on) {
  recorder = PyObject_IsTrue(on) ? &recorded : nullptr;
  if (recorder) recorded.clear();
  Py_RETURN_NONE;
}

// The parameters of the last recorded launch.
static PyObject* last_recorded(PyObject*, PyObject*) {
  return PyBytes_FromStringAndSize(recorded.data(), Py_ssize_t(recorded.size()));
}

static PyMethodDef methods[] = {
    {"record", record, METH_O, "Set whether launches store their parameters instead of running."},
    {"recorded", last_recorded, METH_NOARGS,
     "The parameters of the last recorded launch; empty if there was none."},
    {nullptr, nullptr, 0, nullptr}};

static void describe(PyObject* module) {
#ifdef BLOCKDRAFT_HIP
  PyModule_AddStringConstant(module, "devices", "cpu cuda");
#else
  PyModule_AddStringConstant(module, "devices", "cpu");
#endif
  PyModule_AddIntConstant(module, "header_doubles", kHeaderDoubles);
  PyModule_AddIntConstant(module, "vocab_block_doubles", kVocabBlockDoubles);
  PyModule_AddIntConstant(module, "shortlist_doubles", kShortlistRoom / 2);
  PyModule_AddIntConstant(module, "router_floats", kRouterFloats);
  PyModule_AddIntConstant(module, "cca_bytes", kCcaBytes);
  PyObject* all = PyDict_New();
  for (const auto& [op, arguments] : signatures()) {
    PyObject* text = PyUnicode_FromString(arguments.c_str());
    PyDict_SetItemString(all, op.c_str(), text);
    Py_DECREF(text);
  }
  PyModule_AddObject(module, "signatures", all);
}

}  // namespace blockdraft

// The additional level of macros expands the arguments before # and ## apply.
#define BLOCKDRAFT_IMPL(name, device) STABLE_TORCH_LIBRARY_IMPL(name, device, library)
#define BLOCKDRAFT_JOIN(a, b) a##b
#define BLOCKDRAFT_INIT(module) BLOCKDRAFT_JOIN(PyInit_, module)
#define BLOCKDRAFT_TEXT(x) #x
#define BLOCKDRAFT_NAME(module) BLOCKDRAFT_TEXT(module)

BLOCKDRAFT_IMPL(BLOCKDRAFT_NAMESPACE, CPU) { blockdraft::register_ops(library); }
#ifdef BLOCKDRAFT_HIP
BLOCKDRAFT_IMPL(BLOCKDRAFT_NAMESPACE, CUDA) { blockdraft::register_ops(library); }
#endif

extern "C" PyObject* BLOCKDRAFT_INIT(BLOCKDRAFT_MODULE)() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, BLOCKDRAFT_NAME(BLOCKDRAFT_MODULE),
                                   "C++ kernels of blockdraft", -1, blockdraft::methods};
  PyObject* module = PyModule_Create(&definition);
  if (module) blockdraft::describe(module);
  return module;
}
