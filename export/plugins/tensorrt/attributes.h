// The attributes of an op's node: whole numbers and one real, from and to the fields of TensorRT.
#pragma once

#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "nvinfer.h"

namespace tokenfold {

// Which attributes an op has: names of numbers, and of a real or null.
template <typename Names>
class AttributesOf {
 public:
  static constexpr size_t kNumbers = Names::kNumbers.size();
  static constexpr size_t kAll = kNumbers + (Names::kReal ? 1 : 0);

  int64_t number(size_t i) const { return numbers_[i]; }
  float real() const { return real_; }

  // Throws std::invalid_argument if one is missing, or of another type.
  void read(const nvinfer1::PluginFieldCollection& given) {
    for (size_t i = 0; i < kNumbers; ++i) numbers_[i] = whole(find(given, Names::kNumbers[i]));
    if (Names::kReal) {
      const auto& field = find(given, Names::kReal);
      if (field.type != nvinfer1::PluginFieldType::kFLOAT32) throw wrong(field.name);
      real_ = *static_cast<const float*>(field.data);
    }
  }

  // They name what is in this object.
  nvinfer1::PluginFieldCollection fields() {
    for (size_t i = 0; i < kNumbers; ++i)
      fields_[i] = {Names::kNumbers[i], &numbers_[i], nvinfer1::PluginFieldType::kINT32, 1};
    if (Names::kReal)
      fields_[kNumbers] = {Names::kReal, &real_, nvinfer1::PluginFieldType::kFLOAT32, 1};
    return {static_cast<int32_t>(kAll), fields_.data()};
  }

  std::string text() const {
    std::string found;
    for (size_t i = 0; i < kNumbers; ++i)
      found += std::string(Names::kNumbers[i]) + "=" + std::to_string(numbers_[i]) + " ";
    if (Names::kReal) found += std::string(Names::kReal) + "=" + std::to_string(real_);
    return found;
  }

 private:
  static std::invalid_argument wrong(const char* name) {
    return std::invalid_argument(std::string("the attribute ") + name + " has another type");
  }

  static const nvinfer1::PluginField& find(const nvinfer1::PluginFieldCollection& given,
                                           const char* name) {
    for (int32_t i = 0; i < given.nbFields; ++i) {
      const auto& field = given.fields[i];
      if (field.data && field.length >= 1 && std::strcmp(field.name, name) == 0) return field;
    }
    throw std::invalid_argument(std::string("the attribute ") + name + " is missing");
  }

  static int32_t whole(const nvinfer1::PluginField& field) {
    switch (field.type) {
      case nvinfer1::PluginFieldType::kINT32: return *static_cast<const int32_t*>(field.data);
      case nvinfer1::PluginFieldType::kINT64:
        return static_cast<int32_t>(*static_cast<const int64_t*>(field.data));
      default: throw wrong(field.name);
    }
  }

  std::array<int32_t, kNumbers> numbers_{};
  float real_ = 0.0f;
  std::array<nvinfer1::PluginField, kAll> fields_{};
};

}  // namespace tokenfold
