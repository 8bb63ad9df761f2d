// The plan of one step: page tables, and for each distinct sliding window the units of work.
#pragma once

#include <cstdint>
#include <vector>

#include "api.hpp"

namespace glinthawk {

struct Units {
  std::vector<Unit> units;
  std::vector<int32_t> empty_rows;
  int64_t num_parts = 0;    // partial results
  int64_t num_tokens = 0;
};

class Plan {
 public:
  // All vectors have one entry per row; `offsets` index `tables`. The caller has checked them.
  Plan(std::vector<int32_t> tables, std::vector<int64_t> offsets, std::vector<int32_t> lengths,
       std::vector<int32_t> starts, std::vector<int32_t> positions,
       const std::vector<int32_t>& windows);

  int64_t num_rows() const { return static_cast<int64_t>(lengths_.size()); }
  const std::vector<int32_t>& tables() const { return tables_; }
  const std::vector<int64_t>& offsets() const { return offsets_; }
  const std::vector<int32_t>& lengths() const { return lengths_; }
  // Units for a window of the constructor's (0: full attention).
  const Units& units(int32_t window) const;
  // Whether each row attends to its last token by itself, so that it can be written by the
  // thread that reads it.
  bool can_append() const { return can_append_; }

 private:
  Units build(int32_t window, const std::vector<int32_t>& starts,
              const std::vector<int32_t>& positions) const;

  std::vector<int32_t> tables_;
  std::vector<int64_t> offsets_;
  std::vector<int32_t> lengths_;
  std::vector<int32_t> windows_;
  std::vector<Units> by_window_;
  bool can_append_ = true;
};

}  // namespace glinthawk
