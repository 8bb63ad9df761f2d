#include "plan.hpp"

#include <algorithm>
#include <utility>

namespace glinthawk {

Plan::Plan(std::vector<int32_t> tables, std::vector<int64_t> offsets,
           std::vector<int32_t> lengths, std::vector<int32_t> starts,
           std::vector<int32_t> positions, const std::vector<int32_t>& windows)
    : tables_(std::move(tables)), offsets_(std::move(offsets)), lengths_(std::move(lengths)) {
  for (size_t row = 0; row < lengths_.size(); ++row) {
    can_append_ = can_append_ && starts[row] < lengths_[row] &&
                  positions[row] == lengths_[row] - 1;
  }
  for (const int32_t window : windows) {
    if (std::find(windows_.begin(), windows_.end(), window) == windows_.end()) {
      windows_.push_back(window);
      by_window_.push_back(build(window, starts, positions));
    }
  }
}

const Units& Plan::units(int32_t window) const {
  const auto found = std::find(windows_.begin(), windows_.end(), window);
  return by_window_[static_cast<size_t>(found - windows_.begin())];
}

Units Plan::build(int32_t window, const std::vector<int32_t>& starts,
                  const std::vector<int32_t>& positions) const {
  Units result;
  for (size_t row = 0; row < lengths_.size(); ++row) {
    const int64_t stop = lengths_[row];
    int64_t start = starts[row];
    if (window > 0) {
      start = std::max(start, static_cast<int64_t>(positions[row]) - window + 1);
    }
    if (start >= stop) {
      result.empty_rows.push_back(static_cast<int32_t>(row));
      continue;
    }
    const int64_t first = start / kSplitTokens;
    const auto num = static_cast<int32_t>((stop - 1) / kSplitTokens - first + 1);
    for (int64_t part = 0; part < num; ++part) {
      const int64_t low = std::max(start, (first + part) * kSplitTokens);
      const int64_t high = std::min(stop, (first + part + 1) * kSplitTokens);
      result.units.push_back({static_cast<int32_t>(row), static_cast<int32_t>(low),
                              static_cast<int32_t>(high), num, result.num_parts,
                              result.num_parts + part});
    }
    result.num_parts += num > 1 ? num : 0;
    result.num_tokens += stop - start;
  }
  return result;
}

}  // namespace glinthawk
