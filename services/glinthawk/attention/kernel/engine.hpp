// The arena, the threads, and the jobs that run on them. Arguments have been checked.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "api.hpp"
#include "plan.hpp"
#include "pool.hpp"
#include "warmer.hpp"

namespace glinthawk {

// Memory of the pages: mapped at once, given by the system when first touched, in huge pages if
// there are.
class Arena {
 public:
  explicit Arena(int64_t num_bytes);  // throws std::bad_alloc
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  char* data() const { return data_; }

 private:
  void* mapping_;
  size_t mapped_bytes_;
  char* data_;
};

class Engine {
 public:
  Engine(const Layout& layout, std::vector<int32_t> windows, const Isa& isa, int num_threads);

  const Layout& layout() const { return layout_; }
  const std::vector<int32_t>& windows() const { return windows_; }
  const Isa& isa() const { return isa_; }

  // k, v: data null, or the rows to append as each sequence's last token.
  void attend(int layer, const Plan& plan, const Rows& q, const Rows& k, const Rows& v,
              const Rows& out, float* lse, int64_t lse_stride);
  void append(int layer, const int32_t* pages, const int32_t* slots, int64_t num_rows,
              const Rows& k, const Rows& v);
  void read(int layer, const int32_t* table, int32_t start, int64_t num_rows, const Rows& k,
            const Rows& v);
  void copy_page(int64_t source, int64_t target);
  // Pages below `num_pages` (as many as there are, at most) will be written soon.
  void expect(int64_t num_pages) { warmer_.expect(num_pages); }

 private:
  char* layer_at(int layer) const;
  int threads_for(int64_t num_bytes) const;
  int heads_per_item(int64_t num_units, int num_threads) const;
  void finish(const AttendJob& job, const Item& item, float* scratch);

  Layout layout_;
  std::vector<int32_t> windows_;
  const Isa& isa_;
  int num_threads_;
  Arena arena_;
  Warmer warmer_;
  Pool pool_;
  std::mutex mutex_;  // one call at a time
  int64_t scratch_stride_;
  std::unique_ptr<float[]> scratch_;
  std::unique_ptr<float[]> partials_;
  int64_t partials_size_ = 0;
  std::unique_ptr<std::atomic<int32_t>[]> open_parts_;  // per row and KV head
  int64_t open_parts_size_ = 0;
};

// Bytes per second at which `num_threads` threads read `num_bytes` of fresh memory, the
// fastest of `repeats` passes.
double read_bandwidth(int64_t num_bytes, int num_threads, int repeats, const Isa& isa);

}  // namespace glinthawk
