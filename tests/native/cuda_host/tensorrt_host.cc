// Fake of TensorRT: calls plugins and evaluates size expressions as TensorRT does. Linked with the plugins
// and a separate C++ library, so that the plugins' allocations can be counted or made to fail.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "nvinfer.h"

using namespace nvinfer1;

extern "C" IPluginCreatorInterface* const* getCreators(int32_t& count);

// The linker's names for the original malloc and for its replacement.
extern "C" {
void* __real_malloc(size_t bytes);
void* __real_calloc(size_t count, size_t bytes);
void* __real_realloc(void* from, size_t bytes);
}

namespace {

size_t allocations = 0;
bool out_of_memory = false;

bool refused() {
  ++allocations;
  return out_of_memory;
}

// A size between two bounds, which are equal if it is known.
struct Bounds {
  int64_t least, most;
};

struct Shape {
  Dims least, most;
};

const Bounds& bounds(const IDimensionExpr& of) { return reinterpret_cast<const Bounds&>(of); }

int64_t floor_divided(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

class Expressions : public apiv::VExprBuilder {
 public:
  const IDimensionExpr* keep(Bounds of) {
    kept_.push_back(of);
    return reinterpret_cast<const IDimensionExpr*>(&kept_.back());
  }
  const IDimensionExpr* constant(int64_t value) override { return keep({value, value}); }
  const IDimensionExpr* operation(DimensionOperation op, const IDimensionExpr& first,
                                  const IDimensionExpr& second) override {
    const Bounds a = bounds(first), b = bounds(second);
    Bounds out{0, 0};
    switch (op) {
      case DimensionOperation::kSUM:
        overflow |= __builtin_add_overflow(a.least, b.least, &out.least);
        overflow |= __builtin_add_overflow(a.most, b.most, &out.most);
        break;
      case DimensionOperation::kSUB:
        overflow |= __builtin_sub_overflow(a.least, b.most, &out.least);
        overflow |= __builtin_sub_overflow(a.most, b.least, &out.most);
        break;
      case DimensionOperation::kMIN:
        out = {std::min(a.least, b.least), std::min(a.most, b.most)};
        break;
      case DimensionOperation::kMAX:
        out = {std::max(a.least, b.least), std::max(a.most, b.most)};
        break;
      case DimensionOperation::kFLOOR_DIV:
        if (b.least < 1 || b.least != b.most) std::abort();
        out = {floor_divided(a.least, b.least), floor_divided(a.most, b.least)};
        break;
      default: std::abort();
    }
    return keep(out);
  }

  bool overflow = false;

 private:
  std::deque<Bounds> kept_;
};

struct Builder : IExprBuilder {
  explicit Builder(Expressions& all) { mImpl = &all; }
};

std::vector<DimsExprs> expressions(const Shape* shapes, int32_t count, Expressions& all) {
  std::vector<DimsExprs> out;
  for (int32_t i = 0; i < count; ++i) {
    DimsExprs each{shapes[i].least.nbDims, {}};
    for (int32_t axis = 0; axis < each.nbDims; ++axis)
      each.d[axis] = all.keep({shapes[i].least.d[axis], shapes[i].most.d[axis]});
    out.push_back(each);
  }
  return out;
}

IPluginCreatorV3One* creator(const char* op) {
  int32_t count = 0;
  IPluginCreatorInterface* const* all = getCreators(count);
  for (int32_t i = 0; i < count; ++i) {
    if (std::strcmp(all[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) continue;
    auto* const found = static_cast<IPluginCreatorV3One*>(all[i]);
    if (std::strcmp(found->getPluginName(), op) == 0) return found;
  }
  return nullptr;
}

IPluginV3OneBuild* build(IPluginV3* of) {
  return static_cast<IPluginV3OneBuild*>(of->getCapabilityInterface(PluginCapabilityType::kBUILD));
}

IPluginV3OneRuntime* runtime(IPluginV3* of) {
  return static_cast<IPluginV3OneRuntime*>(of->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

}  // namespace

extern "C" {

void* __wrap_malloc(size_t bytes) { return refused() ? nullptr : __real_malloc(bytes); }
void* __wrap_calloc(size_t count, size_t bytes) {
  return refused() ? nullptr : __real_calloc(count, bytes);
}
void* __wrap_realloc(void* from, size_t bytes) {
  return refused() ? nullptr : __real_realloc(from, bytes);
}

size_t tokenfold_host_allocations() { return allocations; }
void tokenfold_host_out_of_memory(int32_t whether) { out_of_memory = whether; }

// Returns the name, version and namespace of the creator at an index; 0 if there is none.
int32_t tokenfold_host_creator(int32_t at, const char** out) {
  int32_t count = 0;
  IPluginCreatorInterface* const* all = getCreators(count);
  if (at >= count) return 0;
  const auto* const found = static_cast<IPluginCreatorV3One*>(all[at]);
  out[0] = found->getPluginName();
  out[1] = found->getPluginVersion();
  out[2] = found->getPluginNamespace();
  return 1;
}

const PluginFieldCollection* tokenfold_host_names(const char* op) {
  return creator(op)->getFieldNames();
}

IPluginV3* tokenfold_host_create(const char* op, const PluginFieldCollection* fields, int32_t phase) {
  return creator(op)->createPlugin("", fields, static_cast<TensorRTPhase>(phase));
}
void tokenfold_host_destroy(IPluginV3* of) { delete of; }
IPluginV3* tokenfold_host_clone(IPluginV3* of) { return of->clone(); }
IPluginV3* tokenfold_host_attach(IPluginV3* of) { return runtime(of)->attachToContext(nullptr); }
const PluginFieldCollection* tokenfold_host_fields(IPluginV3* of) {
  return runtime(of)->getFieldsToSerialize();
}
const char* tokenfold_host_text(IPluginV3* of) { return build(of)->getMetadataString(); }
int32_t tokenfold_host_outputs(IPluginV3* of) { return build(of)->getNbOutputs(); }

int32_t tokenfold_host_types(IPluginV3* of, const DataType* in, int32_t inputs, DataType* out,
                             int32_t outputs) {
  return build(of)->getOutputDataTypes(out, outputs, in, inputs);
}

// Returns -1 if an expression overflows.
int32_t tokenfold_host_shapes(IPluginV3* of, const Shape* in, int32_t inputs, const Shape* counts,
                              int32_t given, Shape* out, int32_t outputs) {
  Expressions all;
  Builder builder(all);
  const auto sizes = expressions(in, inputs, all), values = expressions(counts, given, all);
  std::vector<DimsExprs> found(static_cast<size_t>(outputs));
  const int32_t code = build(of)->getOutputShapes(sizes.data(), inputs, values.data(), given,
                                                  found.data(), outputs, builder);
  if (code) return code;
  for (int32_t i = 0; i < outputs; ++i) {
    out[i].least.nbDims = out[i].most.nbDims = found[i].nbDims;
    for (int32_t axis = 0; axis < found[i].nbDims; ++axis) {
      out[i].least.d[axis] = bounds(*found[i].d[axis]).least;
      out[i].most.d[axis] = bounds(*found[i].d[axis]).most;
    }
  }
  return all.overflow ? -1 : 0;
}

int32_t tokenfold_host_takes(IPluginV3* of, int32_t at, const DynamicPluginTensorDesc* all,
                             int32_t inputs, int32_t outputs) {
  return build(of)->supportsFormatCombination(at, all, inputs, outputs);
}

int32_t tokenfold_host_configure(IPluginV3* of, const DynamicPluginTensorDesc* in, int32_t inputs,
                                 const DynamicPluginTensorDesc* out, int32_t outputs) {
  return build(of)->configurePlugin(in, inputs, out, outputs);
}

size_t tokenfold_host_workspace(IPluginV3* of, const DynamicPluginTensorDesc* in, int32_t inputs,
                                const DynamicPluginTensorDesc* out, int32_t outputs) {
  return build(of)->getWorkspaceSize(in, inputs, out, outputs);
}

int32_t tokenfold_host_change(IPluginV3* of, const PluginTensorDesc* in, int32_t inputs,
                              const PluginTensorDesc* out, int32_t outputs) {
  return runtime(of)->onShapeChange(in, inputs, out, outputs);
}

int32_t tokenfold_host_enqueue(IPluginV3* of, const PluginTensorDesc* in, const PluginTensorDesc* out,
                               const void* const* inputs, void* const* outputs, void* workspace) {
  return runtime(of)->enqueue(in, out, inputs, outputs, workspace, nullptr);
}

}  // extern "C"
