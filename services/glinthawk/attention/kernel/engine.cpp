#include "engine.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <utility>

namespace glinthawk {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr int64_t kBytesPerThread = 128 << 10;  // less is not worth waking a thread
constexpr int64_t kRowsPerTask = 64;
constexpr int64_t kItemsPerThread = 8;  // enough for threads to end together

// Runs `task(index, thread)` for every index below `num_tasks`, each taken by an atomic
// counter.
template <typename Task>
void run_tasks(Pool& pool, int num_threads, int64_t num_tasks, const Task& task) {
  struct Context {
    const Task& task;
    std::atomic<int64_t> next{0};
    int64_t num_tasks;
  } context{task, {}, num_tasks};
  pool.run(
      num_threads,
      [](void* at, int thread) {
        auto& c = *static_cast<Context*>(at);
        for (int64_t i = c.next.fetch_add(1); i < c.num_tasks; i = c.next.fetch_add(1)) {
          c.task(i, thread);
        }
      },
      &context);
}

// The same with `task(index, following, thread)`: `following` is what the same thread does next,
// nothing from `num_tasks` on. For tasks of which there are many to a thread.
template <typename Task>
void run_tasks_ahead(Pool& pool, int num_threads, int64_t num_tasks, const Task& task) {
  std::atomic<int64_t> counter{0};
  run_tasks(pool, num_threads, num_threads, [&](int64_t, int thread) {
    for (int64_t i = counter.fetch_add(1); i < num_tasks;) {
      const int64_t following = counter.fetch_add(1);
      task(i, following, thread);
      i = following;
    }
  });
}

}  // namespace

Arena::Arena(int64_t num_bytes) {
  mapped_bytes_ = static_cast<size_t>(num_bytes) + kHugePage;
  mapping_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) {
    throw std::bad_alloc();
  }
  const auto address = reinterpret_cast<uintptr_t>(mapping_);
  data_ = static_cast<char*>(mapping_) + ((kHugePage - address % kHugePage) % kHugePage);
#ifdef MADV_HUGEPAGE
  madvise(data_, static_cast<size_t>(num_bytes), MADV_HUGEPAGE);  // a wish, not a need
#endif
}

Arena::~Arena() { munmap(mapping_, mapped_bytes_); }

Engine::Engine(const Layout& layout, std::vector<int32_t> windows, const Isa& isa,
               int num_threads)
    : layout_(layout),
      windows_(std::move(windows)),
      isa_(isa),
      num_threads_(num_threads),
      arena_(layout.layer_stride * layout.num_layers),
      warmer_(arena_.data(), layout_),
      pool_(num_threads) {
  // Threads' scratch lies apart by whole lines and one more.
  scratch_stride_ = (isa_.scratch_floats(layout_) + 63) / 16 * 16;
  scratch_.reset(new float[static_cast<size_t>(scratch_stride_ * num_threads)]);
}

char* Engine::layer_at(int layer) const { return arena_.data() + layer * layout_.layer_stride; }

int Engine::threads_for(int64_t num_bytes) const {
  const int64_t useful = num_bytes / kBytesPerThread + 1;
  return static_cast<int>(std::min<int64_t>(useful, num_threads_));
}

// KV heads of a unit that one thread walks together: all, as they lie side by side in memory,
// fewer where the units are few.
int Engine::heads_per_item(int64_t num_units, int num_threads) const {
  int heads = layout_.num_kv_heads;
  const auto items = [&] { return num_units * ((layout_.num_kv_heads + heads - 1) / heads); };
  while (num_threads > 1 && heads > 1 && items() < kItemsPerThread * num_threads) {
    heads = (heads + 1) / 2;
  }
  return heads;
}

void Engine::attend(int layer, const Plan& plan, const Rows& q, const Rows& k, const Rows& v,
                    const Rows& out, float* lse, int64_t lse_stride) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Units& work = plan.units(windows_[static_cast<size_t>(layer)]);
  const int heads = layout_.num_kv_heads;
  const int64_t need = work.num_parts * heads * isa_.partial_floats(layout_);
  if (need > partials_size_) {
    partials_.reset(new float[static_cast<size_t>(need)]);
    partials_size_ = need;
  }
  if (plan.num_rows() * heads > open_parts_size_) {
    open_parts_size_ = plan.num_rows() * heads;
    open_parts_.reset(new std::atomic<int32_t>[static_cast<size_t>(open_parts_size_)]);
  }
  const AttendJob job{&layout_, layer_at(layer), plan.tables().data(), plan.offsets().data(),
                      plan.lengths().data(), q, k, v, out, lse, lse_stride, partials_.get()};
  for (const int32_t row : work.empty_rows) {
    isa_.clear_row(job, row);
  }
  for (const Unit& unit : work.units) {
    if (unit.part == unit.first_part && unit.num_parts > 1) {
      for (int h = 0; h < heads; ++h) {
        open_parts_[static_cast<size_t>(unit.row) * heads + h].store(
            unit.num_parts, std::memory_order_relaxed);
      }
    }
  }

  const int64_t token_bytes = layout_.page_stride / layout_.page_tokens;
  const int threads = threads_for(work.num_tokens * token_bytes);
  const auto num_units = static_cast<int64_t>(work.units.size());
  const int run = heads_per_item(num_units, threads);
  const int64_t runs = (heads + run - 1) / run;
  const auto item_at = [&](int64_t i) {
    const auto first = static_cast<int32_t>(i % runs) * run;
    return Item{&work.units[static_cast<size_t>(i / runs)], first, std::min(run, heads - first)};
  };
  run_tasks_ahead(pool_, threads, num_units * runs, [&](int64_t i, int64_t following, int thread) {
    const bool has_next = following < num_units * runs;
    const Item item = item_at(i), next = item_at(has_next ? following : i);
    float* scratch = scratch_.get() + thread * scratch_stride_;
    isa_.attend_item(job, item, has_next ? &next : nullptr, scratch);
    finish(job, item, scratch);
  });
}

// Joins the parts of those heads of which this item was the last to be attended.
void Engine::finish(const AttendJob& job, const Item& item, float* scratch) {
  const Unit& unit = *item.unit;
  for (int h = 0; unit.num_parts > 1 && h < item.num_heads; ++h) {
    const int32_t head = item.first_head + h;
    auto& open = open_parts_[static_cast<size_t>(unit.row) * layout_.num_kv_heads + head];
    if (open.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      isa_.merge_row(job, unit, head, scratch);
    }
  }
}

void Engine::append(int layer, const int32_t* pages, const int32_t* slots, int64_t num_rows,
                    const Rows& k, const Rows& v) {
  std::lock_guard<std::mutex> lock(mutex_);
  const AppendJob job{&layout_, layer_at(layer), pages, slots, k, v};
  const int64_t tasks = (num_rows + kRowsPerTask - 1) / kRowsPerTask;
  const int threads = threads_for(num_rows * layout_.page_stride / layout_.page_tokens);
  run_tasks(pool_, threads, tasks, [&](int64_t i, int) {
    isa_.append_rows(job, i * kRowsPerTask, std::min(num_rows, (i + 1) * kRowsPerTask));
  });
}

void Engine::read(int layer, const int32_t* table, int32_t start, int64_t num_rows,
                  const Rows& k, const Rows& v) {
  std::lock_guard<std::mutex> lock(mutex_);
  const ReadJob job{&layout_, layer_at(layer), table, start, k, v};
  const int64_t tasks = (num_rows + kRowsPerTask - 1) / kRowsPerTask;
  const int threads = threads_for(num_rows * layout_.page_stride / layout_.page_tokens);
  run_tasks(pool_, threads, tasks, [&](int64_t i, int) {
    isa_.read_rows(job, i * kRowsPerTask, std::min(num_rows, (i + 1) * kRowsPerTask));
  });
}

void Engine::copy_page(int64_t source, int64_t target) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (source == target) {
    return;
  }
  for (int layer = 0; layer < layout_.num_layers; ++layer) {
    memcpy(layer_at(layer) + target * layout_.page_stride,
           layer_at(layer) + source * layout_.page_stride,
           static_cast<size_t>(layout_.page_stride));
  }
}

double read_bandwidth(int64_t num_bytes, int num_threads, int repeats, const Isa& isa) {
  const Arena arena(num_bytes);
  Pool pool(num_threads);
  memset(arena.data(), 1, static_cast<size_t>(num_bytes));
  constexpr int64_t kChunk = 1 << 20;
  const int64_t chunks = num_bytes / kChunk;
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int i = 0; i < repeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    run_tasks(pool, num_threads, chunks, [&](int64_t chunk, int) {
      sink += isa.read_memory(arena.data() + chunk * kChunk, kChunk);
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    best = std::max(best, static_cast<double>(chunks * kChunk) / took.count());
  }
  return best;
}

}  // namespace glinthawk
