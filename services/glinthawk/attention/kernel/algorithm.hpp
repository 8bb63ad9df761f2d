// Decode attention over pages, written once over the vector type `Vec`, which the including
// file defines before. Included inside the namespace of an instruction set; uses no library
// code but memcpy and memset.
//
// One item of work is a token range of one sequence for a run of KV heads and their query heads.
// It is walked as it lies in memory, page by page and head by head:
//
//   scores = (log2(e) scale q) K^T   K read once for up to kMaxBlock heads
//   weights = 2^(scores - anchor)    the anchor moves, and what is summed is rescaled, only where
//                                    a score rises far above it
//   accumulator += weights V         V read once for up to kMaxBlock heads

#include "rows.hpp"
#include "softmax.hpp"
#include "tiles.hpp"

constexpr int64_t kAheadBytes = 16384;  // prefetch distance, at most a page of the item
// With few query heads, and KV heads that lie side by side, the CPU's own prefetching is best.
constexpr int kFewHeads = 2;
constexpr int64_t kLongRun = 65536;

// A run of query heads that are computed together.
struct HeadBlock {
  int first;
  PageKernels kernels;
};
static int head_blocks(const Layout& l, HeadBlock* blocks) {
  int n = 0;
  for (int first = 0; first < l.group; ++n) {
    const int left = l.group - first;
    const int heads = left >= Vec::kMaxBlock ? Vec::kMaxBlock : left > 4 ? 4 : left;
    blocks[n] = {first, kernels_for(l.format, heads)};
    first += heads;
  }
  return n;
}

static void load_queries(const AttendJob& job, int row, int head, float* q) {
  const Layout& l = *job.layout;
  const int64_t item = item_bytes(job.q.format);
  const char* from = job.q.data + row * job.q.stride +
                     static_cast<int64_t>(head) * l.group * l.head_dim * item;
  for (int g = 0; g < l.group; ++g) {
    widen_row(job.q.format, from + g * l.head_dim * item, q + g * padded_dim(l), l.head_dim,
              l.scale * kLog2E);
  }
}

static void write_result(const AttendJob& job, int row, int head, const State& s) {
  const Layout& l = *job.layout;
  const int64_t item = item_bytes(job.out.format);
  for (int g = 0; g < l.group; ++g) {
    const int64_t query_head = static_cast<int64_t>(head) * l.group + g;
    const float total = sum_of(load(s.total + 16 * g));
    narrow_row(job.out.format, s.sums + g * padded_dim(l),
               job.out.data + row * job.out.stride + query_head * l.head_dim * item, l.head_dim,
               1.0f / total);
    if (job.lse != nullptr) {
      job.lse[row * job.lse_stride + query_head] = s.anchor[g] / kLog2E + __builtin_logf(total);
    }
  }
}

// One page of one KV head. `low`, `high`: the range of its tokens that counts.
struct PageJob {
  const char* tiles;
  const char* ahead[2];  // prefetched during the scores, during the sums; may be null
  int low;
  int high;
  const HeadBlock* blocks;
  int num_blocks;
  const float* q;
  float* scores;
};
static inline void attend_page(const Layout& l, const PageJob& job, const State& s) {
  const int dim = l.head_dim, tokens = l.page_tokens, stride = padded_dim(l);
  for (int b = 0; b < job.num_blocks; ++b) {
    const int64_t h = job.blocks[b].first;
    job.blocks[b].kernels.score(job.tiles, dim, tokens, job.q + h * stride, stride,
                                job.scores + h * tokens, tokens,
                                b == 0 ? job.ahead[0] : nullptr);
  }
  for (int g = 0; g < l.group; ++g) {
    soften(job.scores + g * tokens, tokens, job.low, job.high, s.sums + g * stride, stride,
           &s.anchor[g], s.total + 16 * g);
  }
  const char* values = job.tiles + l.tile_bytes + job.low * dim * item_bytes(l.format);
  for (int b = 0; b < job.num_blocks; ++b) {
    const int64_t h = job.blocks[b].first;
    job.blocks[b].kernels.weigh(values, dim, job.high - job.low,
                                job.scores + h * tokens + job.low, tokens, s.sums + h * stride,
                                stride, b == 0 ? job.ahead[1] : nullptr);
  }
  if (job.ahead[1] != nullptr) {  // a pass over fewer tokens did not get to all of it
    const int64_t done = static_cast<int64_t>(job.high - job.low) * dim * item_bytes(l.format);
    for (int64_t line = done; line < l.tile_bytes; line += 64) {
      prefetch<64>(job.ahead[1] + line, 0);
    }
  }
}

// The tiles of an item's KV heads on one page.
struct Tiles {
  char* at;
  int num;
};

// The tile to prefetch while tile `index` of a page's run of KV heads is computed; null for none.
// Where the CPU's own prefetching is best instructions only hold it up; all that it cannot know is
// where the `next` page lies (of no tiles if there is none).
static inline const char* tile_ahead(const Layout& l, const Tiles& page, const Tiles& next,
                                     int index) {
  const bool by_cpu = l.group <= kFewHeads && page.num * l.tile_bytes >= kLongRun;
  const int64_t far = by_cpu ? 1 : kAheadBytes / l.tile_bytes;
  const int64_t at = index + (far < 1 ? 1 : far > page.num ? page.num : far);
  if (at >= page.num) {
    return at - page.num < next.num ? next.at + (at - page.num) * l.tile_bytes : nullptr;
  }
  return by_cpu ? nullptr : page.at + at * l.tile_bytes;
}

static void begin_heads(const AttendJob& job, const Item& item, float* states, float* q) {
  const Layout& l = *job.layout;
  const int64_t state_floats = partial_floats(l);
  memset(states, 0, static_cast<size_t>(item.num_heads * state_floats) * sizeof(float));
  for (int h = 0; h < item.num_heads; ++h) {
    const State s = state_at(l, states + h * state_floats);
    for (int g = 0; g < l.group; ++g) {
      s.anchor[g] = kLowest;
    }
    load_queries(job, item.unit->row, item.first_head + h, q + h * query_floats(l));
  }
}

// The item's tiles on the page of its row that holds `token`.
static inline Tiles tiles_at(const AttendJob& job, const Item& item, int token) {
  const Layout& l = *job.layout;
  const int32_t page = job.tables[job.table_offsets[item.unit->row] + token / l.page_tokens];
  return {job.layer + page * l.page_stride + item.first_head * 2 * l.tile_bytes,
          2 * item.num_heads};
}

static void append_own(const AttendJob& job, const Unit& unit, int head, char* tiles) {
  const Layout& l = *job.layout;
  const int slot = (unit.stop - 1) % l.page_tokens;
  write_head(l, tiles, slot, 1, job.k, job.v, unit.row, static_cast<int64_t>(head) * l.head_dim);
}

static void attend_item(const AttendJob& job, const Item& item, const Item* next,
                        float* scratch) {
  const Layout& l = *job.layout;
  const Unit& unit = *item.unit;
  const int tokens = l.page_tokens, num_heads = item.num_heads;
  const int64_t state_floats = partial_floats(l), head_bytes = 2 * l.tile_bytes;
  float* q = scratch + l.num_kv_heads * state_floats;
  float* scores = q + l.num_kv_heads * query_floats(l);
  const bool is_whole = unit.num_parts == 1;
  const int64_t part = unit.part * l.num_kv_heads + item.first_head;
  float* states = is_whole ? scratch : job.partials + part * state_floats;
  begin_heads(job, item, states, q);
  HeadBlock blocks[kMaxGroup];
  const int num_blocks = head_blocks(l, blocks);
  const bool has_own = job.k.data != nullptr && unit.stop == job.lengths[unit.row];

  for (int base = unit.start / tokens * tokens; base < unit.stop; base += tokens) {
    const Tiles page = tiles_at(job, item, base);
    const bool is_last = base + tokens >= unit.stop;
    const Tiles following = !is_last          ? tiles_at(job, item, base + tokens)
                            : next != nullptr ? tiles_at(job, *next, next->unit->start)
                                              : Tiles{nullptr, 0};
    const int low = unit.start > base ? unit.start - base : 0;
    const int high = is_last ? unit.stop - base : tokens;
    for (int h = 0; h < num_heads; ++h) {
      char* tiles = page.at + h * head_bytes;
      if (has_own && is_last) {
        append_own(job, unit, item.first_head + h, tiles);
      }
      attend_page(l, {tiles,
                      {tile_ahead(l, page, following, 2 * h),
                       tile_ahead(l, page, following, 2 * h + 1)},
                      low, high, blocks, num_blocks, q + h * query_floats(l), scores},
                  state_at(l, states + h * state_floats));
    }
  }
  for (int h = 0; is_whole && h < num_heads; ++h) {
    write_result(job, unit.row, item.first_head + h, state_at(l, states + h * state_floats));
  }
}

static void merge_row(const AttendJob& job, const Unit& any, int32_t head, float* scratch) {
  const Layout& l = *job.layout;
  const int stride = padded_dim(l);
  const int64_t size = partial_floats(l);
  const State s = state_at(l, scratch);
  memset(scratch, 0, static_cast<size_t>(size) * sizeof(float));
  for (int g = 0; g < l.group; ++g) {
    float top = kLowest;
    for (int part = 0; part < any.num_parts; ++part) {
      const int64_t index = (any.first_part + part) * l.num_kv_heads + head;
      const State one = state_at(l, job.partials + index * size);
      top = one.anchor[g] <= top ? top : one.anchor[g];
    }
    s.anchor[g] = top;
    for (int part = 0; part < any.num_parts; ++part) {
      const int64_t index = (any.first_part + part) * l.num_kv_heads + head;
      const State one = state_at(l, job.partials + index * size);
      const Vec f = exp2_of(broadcast(one.anchor[g] - top));
      for (int d = 0; d < stride; d += kW) {
        float* sum = s.sums + g * stride + d;
        store(sum, fma(load(one.sums + g * stride + d), f, load(sum)));
      }
      float* total = s.total + 16 * g;
      store(total, fma(load(one.total + 16 * g), f, load(total)));
    }
  }
  write_result(job, any.row, head, s);
}

static void clear_row(const AttendJob& job, int32_t row) {
  const Layout& l = *job.layout;
  memset(job.out.data + row * job.out.stride, 0,
         static_cast<size_t>(l.num_query_heads * l.head_dim * item_bytes(job.out.format)));
  if (job.lse != nullptr) {
    for (int h = 0; h < l.num_query_heads; ++h) {
      job.lse[row * job.lse_stride + h] = -__builtin_inff();
    }
  }
}

static uint64_t read_memory(const char* data, int64_t num_bytes) {
  return read_memory_loop(data, num_bytes);
}

static constexpr Isa make_isa(const char* name) {
  return {name,      scratch_floats, partial_floats, attend_item, merge_row,
          clear_row, append_rows,    read_rows,      read_memory};
}
