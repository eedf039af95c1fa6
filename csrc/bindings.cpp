// The extension module. Its attributes (devices, sizes, and signatures, once the kernels are
// registered) let blockdraft.ops check that both sides agree.
#include <Python.h>

#include "ops/cca_qkv/params.h"
#include "ops/plan_branches/params.h"
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
void register_plan_branches(Library&);
void register_residual_norm(Library&);
void register_rope_qkv(Library&);
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
  register_plan_branches(library);
  register_residual_norm(library);
  register_rope_qkv(library);
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

// register(namespace): from now on torch has the kernels there, under the schemas of
// blockdraft.registry.
static PyObject* register_in(PyObject* module, PyObject* name) {
  const char* space = PyUnicode_AsUTF8AndSize(name, nullptr);
  if (!space) return nullptr;
  // they stay as long as the process does
  register_ops(*new Library(Library::Kind::IMPL, space, "CPU", __FILE__, __LINE__));
#ifdef BLOCKDRAFT_HIP
  register_ops(*new Library(Library::Kind::IMPL, space, "CUDA", __FILE__, __LINE__));
#endif
  PyObject* all = PyDict_New();
  for (const auto& [op, arguments] : signatures()) {
    PyObject* text = PyUnicode_FromString(arguments.c_str());
    PyDict_SetItemString(all, op.c_str(), text);
    Py_DECREF(text);
  }
  if (PyModule_AddObject(module, "signatures", all) < 0) return nullptr;
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"register", register_in, METH_O, "Register the kernels in a namespace of torch.ops."},
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
  PyModule_AddIntConstant(module, "router_floats", kRouterFloats);
  PyModule_AddIntConstant(module, "cca_bytes", kCcaBytes);
  PyModule_AddIntConstant(module, "plan_levels", kPlanLevels);
}

}  // namespace blockdraft

// The additional level of macros expands the arguments before # and ## apply.
#define BLOCKDRAFT_JOIN(a, b) a##b
#define BLOCKDRAFT_INIT(module) BLOCKDRAFT_JOIN(PyInit_, module)
#define BLOCKDRAFT_TEXT(x) #x
#define BLOCKDRAFT_NAME(module) BLOCKDRAFT_TEXT(module)

PyMODINIT_FUNC BLOCKDRAFT_INIT(BLOCKDRAFT_MODULE)() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, BLOCKDRAFT_NAME(BLOCKDRAFT_MODULE),
                                   "C++ kernels of blockdraft", -1, blockdraft::methods};
  PyObject* module = PyModule_Create(&definition);
  if (module) blockdraft::describe(module);
  return module;
}
