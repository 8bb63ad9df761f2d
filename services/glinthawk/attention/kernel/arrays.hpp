// Arrays from Python: what they must look like, and the ValueError where they do not.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>
#include <vector>

#include "api.hpp"

namespace glinthawk {

namespace nb = nanobind;

using In = nb::ndarray<nb::ro, nb::device::cpu>;
using Out = nb::ndarray<nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Offsets = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] inline void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }
inline std::string text(int64_t number) { return std::to_string(number); }

template <typename Array>
Rows rows_of(const char* name, const Array& rows, int64_t num_rows, int64_t num_columns) {
  Format format;
  if (rows.dtype() == nb::dtype<float>()) {
    format = Format::kFloat32;
  } else if (rows.dtype() == nb::dtype<uint16_t>()) {
    format = Format::kBFloat16;
  } else if (rows.dtype() == nb::dlpack::dtype{
                                 static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1}) {
    format = Format::kFloat16;
  } else {
    refuse(std::string(name) + " is none of float32, float16, uint16 (bfloat16 bits)");
  }
  if (rows.ndim() != 2 || static_cast<int64_t>(rows.shape(0)) != num_rows ||
      static_cast<int64_t>(rows.shape(1)) != num_columns) {
    refuse(std::string(name) + " has not the shape (" + text(num_rows) + ", " +
           text(num_columns) + ")");
  }
  const int64_t item = format == Format::kFloat32 ? 4 : 2;
  if (num_rows > 0 && rows.stride(1) != 1) {
    refuse(std::string(name) + " has rows that are not contiguous");
  }
  const int64_t stride = num_rows > 1 ? rows.stride(0) * item : 0;
  return {const_cast<char*>(static_cast<const char*>(rows.data())), stride, format};
}

inline void check_below(const char* name, const Ints& values, int64_t num, int64_t limit) {
  if (static_cast<int64_t>(values.size()) != num) {
    refuse(std::string(name) + " has " + text(static_cast<int64_t>(values.size())) +
           " entries, expected " + text(num));
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (values.data()[i] < 0 || values.data()[i] >= limit) {
      refuse(std::string(name) + " has " + text(values.data()[i]) + ", outside 0 to " +
             text(limit - 1));
    }
  }
}

inline std::vector<int32_t> copy_of(const Ints& values) {
  return {values.data(), values.data() + values.size()};
}

}  // namespace glinthawk
