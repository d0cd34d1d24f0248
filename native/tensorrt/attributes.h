// The attributes of an op's node, and their conversion from and to TensorRT's plugin fields.
#pragma once

#include <cinttypes>
#include <cstddef>
#include <cstdio>
#include <cstring>

#include "nvinfer.h"
#include "problem.h"

namespace tokenfold {

// The attributes of all ops. Attributes that an op does not have keep these defaults.
struct Attributes {
  int32_t heads = 1;
  int32_t protected_tokens = 0;
  float scale = 1.0f;
  float margin = 0.0f;
};

// Description of one attribute: an integer from `least` to `most`, or a real number.
struct Attribute {
  const char* name;
  int32_t Attributes::*whole;
  float Attributes::*real;
  int32_t least, most;
};

constexpr size_t kMostAttributes = 3;
// Maximum length of the text that `Fields::write` writes.
constexpr size_t kTextBytes = 96;

// Plugin fields that point to an op's attributes.
class Fields {
 public:
  template <size_t kCount>
  Fields(const Attribute (&all)[kCount], const Attributes& of) : all_(all), of_(of) {
    static_assert(kCount <= kMostAttributes, "each has its field");
    for (size_t i = 0; i < kCount; ++i) fields_[i] = field(all[i]);
    collection_.nbFields = static_cast<int32_t>(kCount);
    collection_.fields = fields_;
  }
  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;

  const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }

  // Writes text such as "heads=12 scale=0.125 ", which is different for different attributes.
  void write(char (&text)[kTextBytes]) const {
    text[0] = '\0';
    for (int32_t i = 0; i < collection_.nbFields; ++i) {
      const Attribute& each = all_[i];
      const size_t used = std::strlen(text), left = sizeof(text) - used;
      if (each.whole)
        std::snprintf(text + used, left, "%s=%" PRId32 " ", each.name, of_.*each.whole);
      else
        std::snprintf(text + used, left, "%s=%.9g ", each.name, of_.*each.real);
    }
  }

 private:
  nvinfer1::PluginField field(const Attribute& of) const {
    if (of.whole) return {of.name, &(of_.*of.whole), nvinfer1::PluginFieldType::kINT32, 1};
    return {of.name, &(of_.*of.real), nvinfer1::PluginFieldType::kFLOAT32, 1};
  }

  const Attribute* const all_;
  const Attributes& of_;
  nvinfer1::PluginField fields_[kMostAttributes]{};
  nvinfer1::PluginFieldCollection collection_{};
};

// The data of an engine's fields may be unaligned.
template <typename T>
T value(const nvinfer1::PluginField& field) {
  T out;
  std::memcpy(&out, field.data, sizeof(out));
  return out;
}

inline int32_t read_whole(const char* op, const Attribute& of, const nvinfer1::PluginField& field,
                          int32_t* out) {
  int64_t number = 0;
  switch (field.type) {
    case nvinfer1::PluginFieldType::kINT32: number = value<int32_t>(field); break;
    case nvinfer1::PluginFieldType::kINT64: number = value<int64_t>(field); break;
    default: return failed(kFailed, op, "the attribute %s is a whole number", of.name);
  }
  if (number < of.least || number > of.most)
    return failed(kFailed, op, "the attribute %s is from %" PRId32 " to %" PRId32 ", not %" PRId64,
                  of.name, of.least, of.most, number);
  *out = static_cast<int32_t>(number);
  return 0;
}

inline int32_t read(const char* op, const Attribute& of, const nvinfer1::PluginFieldCollection* given,
                    Attributes* out) {
  for (int32_t i = 0; given && i < given->nbFields; ++i) {
    const nvinfer1::PluginField& field = given->fields[i];
    if (!field.name || std::strcmp(field.name, of.name) != 0) continue;
    if (!field.data || field.length != 1)
      return failed(kFailed, op, "the attribute %s is one number", of.name);
    if (of.whole) return read_whole(op, of, field, &(out->*of.whole));
    if (field.type != nvinfer1::PluginFieldType::kFLOAT32)
      return failed(kFailed, op, "the attribute %s is a real number", of.name);
    out->*of.real = value<float>(field);
    return 0;
  }
  return failed(kFailed, op, "the attribute %s is missing", of.name);
}

// Returns 0; or the result of `failed` if an attribute is missing, of another type, or out of range.
template <size_t kCount>
int32_t read(const char* op, const Attribute (&all)[kCount],
             const nvinfer1::PluginFieldCollection* given, Attributes* out) {
  for (const Attribute& each : all)
    if (const int32_t code = read(op, each, given, out)) return code;
  return 0;
}

}  // namespace tokenfold
