// Decode attention over pages, written once over the vector type `Vec`, which the including
// file defines before. Included inside the namespace of an instruction set; uses no library
// code but memcpy and memset.
//
// One unit of work is a token range of one sequence for one KV head and its query heads:
//
//   scores = (scale q) K^T      kept per block of pages, K read once for up to kMaxBlock heads
//   online softmax              largest score so far, sum, and accumulator rescaled per block
//   accumulator += weights V    V read once for up to kMaxBlock heads
//
// While page j is computed, the page that comes `pages_ahead` later is prefetched, into the second
// cache: the first one would lose it again before it is read.

constexpr int kW = Vec::kWidth;
constexpr int kBlockTokens = 64;  // tokens per softmax update (or one page, if larger)
constexpr int kAheadBytes = 16384;  // prefetch distance in K or V tiles
constexpr int kMaxAhead = 4;
constexpr float kLowest = -3.0e38f;

static constexpr int64_t item_bytes(Format f) { return f == Format::kFloat32 ? 4 : 2; }
static inline int padded_dim(const Layout& l) { return (l.head_dim + 15) / 16 * 16; }
static inline int block_pages(const Layout& l) {
  return l.page_tokens >= kBlockTokens ? 1 : kBlockTokens / l.page_tokens;
}
static inline int pages_ahead(const Layout& l) {
  const int64_t pages = kAheadBytes / l.tile_bytes;
  return pages < 1 ? 1 : pages > kMaxAhead ? kMaxAhead : static_cast<int>(pages);
}

static inline Vec exp_of(Vec x) {
  // 2^n * e^r, |r| <= ln(2) / 2; the polynomial is Taylor's to degree 6 (error 2e-8).
  // A NaN stays one: max returns its second operand then.
  x = max(broadcast(-87.0f), x);
  const Vec n = round_even(mul(x, broadcast(1.44269504088896341f)));
  Vec r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.0f / 720);
  p = fma(p, r, broadcast(1.0f / 120));
  p = fma(p, r, broadcast(1.0f / 24));
  p = fma(p, r, broadcast(1.0f / 6));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return scale_two(p, n);
}
static inline float exp_of(float x) { return first_of(exp_of(broadcast(x))); }
static inline float sum_of(Vec a) {
  float lanes[kW];
  store(lanes, a);
  for (int width = kW / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      lanes[i] += lanes[i + width];
    }
  }
  return lanes[0];
}

// ---- conversion of rows ---------------------------------------------------------------------

template <Format F>
static inline void widen_row(const char* from, float* to, int n, float factor) {
  const Vec f = broadcast(factor);
  int i = 0;
  for (; i + kW <= n; i += kW) {
    store(to + i, mul(load_as<F>(from + i * item_bytes(F)), f));
  }
  if (i < n) {  // head_dim is a multiple of 8; `to` is padded to 16
    store(to + i, mul(load_eight<F>(from + i * item_bytes(F)), f));
  }
}
static void widen_row(Format format, const char* from, float* to, int n, float factor) {
  switch (format) {
    case Format::kFloat32: return widen_row<Format::kFloat32>(from, to, n, factor);
    case Format::kFloat16: return widen_row<Format::kFloat16>(from, to, n, factor);
    case Format::kBFloat16: return widen_row<Format::kBFloat16>(from, to, n, factor);
  }
}
template <Format F>
static inline void narrow_row(const float* from, char* to, int n, float factor) {
  const Vec f = broadcast(factor);
  int i = 0;
  for (; i + kW <= n; i += kW) {
    store_as<F>(to + i * item_bytes(F), mul(load(from + i), f));
  }
  if (i < n) {
    store_eight<F>(to + i * item_bytes(F), mul(load(from + i), f));
  }
}
static void narrow_row(Format format, const float* from, char* to, int n, float factor) {
  switch (format) {
    case Format::kFloat32: return narrow_row<Format::kFloat32>(from, to, n, factor);
    case Format::kFloat16: return narrow_row<Format::kFloat16>(from, to, n, factor);
    case Format::kBFloat16: return narrow_row<Format::kBFloat16>(from, to, n, factor);
  }
}
static inline void convert_row(Format from_format, const char* from, Format to_format, char* to,
                               int n) {
  if (from_format == to_format) {
    memcpy(to, from, static_cast<size_t>(n * item_bytes(to_format)));
    return;
  }
  float wide[kMaxHeadDim];
  widen_row(from_format, from, wide, n, 1.0f);
  narrow_row(to_format, wide, to, n, 1.0f);
}

// ---- writing and reading the arena ----------------------------------------------------------

template <typename Item>
static inline void transpose_in(const char* rows, int num_rows, char* tile, int dim, int tokens,
                                int slot) {
  const Item* from = reinterpret_cast<const Item*>(rows);
  Item* to = reinterpret_cast<Item*>(tile) + slot;
  for (int d = 0; d < dim; ++d) {
    for (int r = 0; r < num_rows; ++r) {
      to[d * tokens + r] = from[r * dim + d];
    }
  }
}
template <typename Item>
static inline void transpose_out(const char* tile, int slot, char* row, int dim, int tokens) {
  const Item* from = reinterpret_cast<const Item*>(tile) + slot;
  Item* to = reinterpret_cast<Item*>(row);
  for (int d = 0; d < dim; ++d) {
    to[d] = from[d * tokens];
  }
}

constexpr int kMaxRun = 16;  // rows transposed together

// Writes `n` rows of one head at slots [slot, slot + n) of the tiles at `head`.
static void write_head(const Layout& l, char* head, int slot, int n, const Rows& k, const Rows& v,
                       int64_t row, int64_t column) {
  alignas(64) char rows[kMaxRun * kMaxHeadDim * 4];
  const int64_t item = item_bytes(l.format);
  const int64_t row_bytes = l.head_dim * item;
  for (int r = 0; r < n; ++r) {
    const char* from_k = k.data + (row + r) * k.stride + column * item_bytes(k.format);
    const char* from_v = v.data + (row + r) * v.stride + column * item_bytes(v.format);
    convert_row(k.format, from_k, l.format, rows + r * row_bytes, l.head_dim);
    convert_row(v.format, from_v, l.format, head + l.tile_bytes + (slot + r) * row_bytes,
                l.head_dim);
  }
  if (item == 4) {
    transpose_in<uint32_t>(rows, n, head, l.head_dim, l.page_tokens, slot);
  } else {
    transpose_in<uint16_t>(rows, n, head, l.head_dim, l.page_tokens, slot);
  }
}

static void append_rows(const AppendJob& job, int64_t begin, int64_t end) {
  const Layout& l = *job.layout;
  for (int64_t row = begin; row < end;) {
    const int32_t page = job.pages[row];
    const int32_t slot = job.slots[row];
    int n = 1;
    while (n < kMaxRun && row + n < end && job.pages[row + n] == page &&
           job.slots[row + n] == slot + n) {
      ++n;
    }
    for (int h = 0; h < l.num_kv_heads; ++h) {
      char* head = job.layer + page * l.page_stride + h * 2 * l.tile_bytes;
      write_head(l, head, slot, n, job.k, job.v, row, static_cast<int64_t>(h) * l.head_dim);
    }
    row += n;
  }
}

static void read_rows(const ReadJob& job, int64_t begin, int64_t end) {
  const Layout& l = *job.layout;
  alignas(64) char k_row[kMaxHeadDim * 4];
  const int64_t row_bytes = l.head_dim * item_bytes(l.format);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t token = job.start + row;
    const int slot = static_cast<int>(token % l.page_tokens);
    const char* page = job.layer + job.table[token / l.page_tokens] * l.page_stride;
    for (int h = 0; h < l.num_kv_heads; ++h) {
      const char* head = page + h * 2 * l.tile_bytes;
      const int64_t column = static_cast<int64_t>(h) * l.head_dim;
      if (item_bytes(l.format) == 4) {
        transpose_out<uint32_t>(head, slot, k_row, l.head_dim, l.page_tokens);
      } else {
        transpose_out<uint16_t>(head, slot, k_row, l.head_dim, l.page_tokens);
      }
      char* to_k = job.k.data + row * job.k.stride + column * item_bytes(job.k.format);
      char* to_v = job.v.data + row * job.v.stride + column * item_bytes(job.v.format);
      convert_row(l.format, k_row, job.k.format, to_k, l.head_dim);
      convert_row(l.format, head + l.tile_bytes + slot * row_bytes, job.v.format, to_v,
                  l.head_dim);
    }
  }
}

// Every pass over a tile prefetches its share of the tile ahead, in order of address: the
// loads of memory stay even, and as many as the arithmetic between them.
template <int64_t Step>
static inline void prefetch(const char* ahead, int64_t iteration) {
  for (int64_t line = 0; line < Step; line += 64) {
    __builtin_prefetch(ahead + iteration * Step + line, 0, 2);
  }
}

// ---- scores ---------------------------------------------------------------------------------

// scores[g][t] = q[g] . K[:, t] for tokens [0, NV * kW) from `tile` on.
template <Format F, int G, int NV, bool Prefetch>
static inline void score_tokens(const char* tile, int dim, int tokens, const float* q,
                                int64_t q_stride, float* scores, int64_t score_stride,
                                const char* ahead) {
  Vec sum[G][NV];
  for (int g = 0; g < G; ++g) {
    for (int v = 0; v < NV; ++v) {
      sum[g][v] = zero();
    }
  }
  const int64_t row_bytes = tokens * item_bytes(F);
  for (int d = 0; d < dim; ++d) {
    const char* row = tile + d * row_bytes;
    if constexpr (Prefetch) {
      prefetch<NV * kW * item_bytes(F)>(ahead, d);
    }
    Vec k[NV];
    for (int v = 0; v < NV; ++v) {
      k[v] = load_as<F>(row + v * kW * item_bytes(F));
    }
    for (int g = 0; g < G; ++g) {
      const Vec a = broadcast(q[g * q_stride + d]);
      for (int v = 0; v < NV; ++v) {
        sum[g][v] = fma(a, k[v], sum[g][v]);
      }
    }
  }
  for (int g = 0; g < G; ++g) {
    for (int v = 0; v < NV; ++v) {
      store(scores + g * score_stride + v * kW, sum[g][v]);
    }
  }
}

template <Format F, int G>
static void score_page(const char* tile, int dim, int tokens, const float* q, int64_t q_stride,
                       float* scores, int64_t score_stride, const char* ahead) {
  constexpr int kFit = Vec::kAccumulators / G;
  constexpr int kNv = kFit >= 4 && kW == 8 ? 4 : kFit >= 2 ? 2 : 1;
  int t = 0;
  for (; t + kNv * kW <= tokens; t += kNv * kW) {
    const int64_t offset = t * item_bytes(F);
    if (ahead != nullptr) {
      score_tokens<F, G, kNv, true>(tile + offset, dim, tokens, q, q_stride, scores + t,
                                    score_stride, ahead + offset * dim);
    } else {
      score_tokens<F, G, kNv, false>(tile + offset, dim, tokens, q, q_stride, scores + t,
                                     score_stride, nullptr);
    }
  }
  for (; t < tokens; t += kW) {
    score_tokens<F, G, 1, false>(tile + t * item_bytes(F), dim, tokens, q, q_stride, scores + t,
                                 score_stride, nullptr);
  }
}

// ---- weights times V ------------------------------------------------------------------------

template <Format F, int G, int NV, bool Eight, bool Prefetch>
static inline void weigh_columns(const char* tile, int dim, int num_tokens, const float* weights,
                                 int64_t weight_stride, float* sums, int64_t sum_stride,
                                 const char* ahead) {
  Vec sum[G][NV];
  for (int g = 0; g < G; ++g) {
    for (int v = 0; v < NV; ++v) {
      sum[g][v] = load(sums + g * sum_stride + v * kW);
    }
  }
  const int64_t row_bytes = dim * item_bytes(F);
  for (int t = 0; t < num_tokens; ++t) {
    const char* row = tile + t * row_bytes;
    if constexpr (Prefetch) {
      prefetch<NV * kW * item_bytes(F)>(ahead, t);
    }
    Vec x[NV];
    for (int v = 0; v < NV; ++v) {
      const char* from = row + v * kW * item_bytes(F);
      x[v] = Eight ? load_eight<F>(from) : load_as<F>(from);
    }
    for (int g = 0; g < G; ++g) {
      const Vec a = broadcast(weights[g * weight_stride + t]);
      for (int v = 0; v < NV; ++v) {
        sum[g][v] = fma(a, x[v], sum[g][v]);
      }
    }
  }
  for (int g = 0; g < G; ++g) {
    for (int v = 0; v < NV; ++v) {
      store(sums + g * sum_stride + v * kW, sum[g][v]);
    }
  }
}

template <Format F, int G, int NV>
static inline int weigh_while(int column, const char* tile, int dim, int num_tokens,
                              const float* weights, int64_t weight_stride, float* sums,
                              int64_t sum_stride, const char* ahead) {
  for (; column + NV * kW <= dim; column += NV * kW) {
    const int64_t offset = column * item_bytes(F);
    if (ahead != nullptr) {
      weigh_columns<F, G, NV, false, true>(tile + offset, dim, num_tokens, weights, weight_stride,
                                           sums + column, sum_stride,
                                           ahead + offset * num_tokens);
    } else {
      weigh_columns<F, G, NV, false, false>(tile + offset, dim, num_tokens, weights,
                                            weight_stride, sums + column, sum_stride, nullptr);
    }
  }
  if constexpr (NV > 1) {
    return weigh_while<F, G, NV / 2>(column, tile, dim, num_tokens, weights, weight_stride, sums,
                                     sum_stride, ahead);
  }
  return column;
}

// sums[g] += sum over t of weights[g][t] * V[t]
template <Format F, int G>
static void weigh_page(const char* tile, int dim, int num_tokens, const float* weights,
                       int64_t weight_stride, float* sums, int64_t sum_stride,
                       const char* ahead) {
  constexpr int kFit = Vec::kAccumulators / G;
  constexpr int kNv = kFit >= 8 ? 8 : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
  const int column = weigh_while<F, G, kNv>(0, tile, dim, num_tokens, weights, weight_stride,
                                            sums, sum_stride, ahead);
  if (column < dim) {  // the last eight columns of a width of sixteen
    weigh_columns<F, G, 1, true, false>(tile + column * item_bytes(F), dim, num_tokens, weights,
                                        weight_stride, sums + column, sum_stride, nullptr);
  }
}

// ---- one unit -------------------------------------------------------------------------------

struct PageKernels {
  void (*score)(const char*, int, int, const float*, int64_t, float*, int64_t, const char*);
  void (*weigh)(const char*, int, int, const float*, int64_t, float*, int64_t, const char*);
};

template <Format F>
static PageKernels kernels_for(int heads) {
  switch (heads) {
    case 1: return {score_page<F, 1>, weigh_page<F, 1>};
    case 2: return {score_page<F, 2>, weigh_page<F, 2>};
    case 3: return {score_page<F, 3>, weigh_page<F, 3>};
    case 4: return {score_page<F, 4>, weigh_page<F, 4>};
    default: return {score_page<F, Vec::kMaxBlock>, weigh_page<F, Vec::kMaxBlock>};
  }
}
static PageKernels kernels_for(Format format, int heads) {
  switch (format) {
    case Format::kFloat32: return kernels_for<Format::kFloat32>(heads);
    case Format::kFloat16: return kernels_for<Format::kFloat16>(heads);
    default: return kernels_for<Format::kBFloat16>(heads);
  }
}

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

// State of one unit's query heads:
//   sums [group][padded dim] | top [16] | total [16][16]
// which is also what a partial result holds.
struct State {
  float* sums;
  float* top;    // largest score so far
  float* total;  // sum of exponentials, a vector for each head, in strides of 16
};
static inline State state_at(const Layout& l, float* at) {
  float* top = at + static_cast<int64_t>(l.group) * padded_dim(l);
  return {at, top, top + kMaxGroup};
}
static int64_t partial_floats(const Layout& l) {
  return static_cast<int64_t>(l.group) * padded_dim(l) + kMaxGroup + 16 * kMaxGroup;
}
static int block_stride(const Layout& l) { return block_pages(l) * l.page_tokens; }
// Scratch of a thread: state | q [group][padded dim] | scores [group][block]
static int64_t scratch_floats(const Layout& l) {
  return partial_floats(l) + static_cast<int64_t>(l.group) * (padded_dim(l) + block_stride(l));
}

// Turns scores [0, n) of one head into weights, tokens outside [low, high) into 0.
static inline void soften(float* scores, int n, int low, int high, float* sums, int dim,
                          float* top, float* total) {
  for (int t = 0; t < low; ++t) {
    scores[t] = kLowest;
  }
  for (int t = high; t < n; ++t) {
    scores[t] = kLowest;
  }
  Vec highest = load(scores);
  for (int t = kW; t < n; t += kW) {
    highest = max(highest, load(scores + t));
  }
  const float block_top = first_of(spread_largest(highest));
  if (!(block_top <= *top)) {
    const float factor = *top == kLowest ? 0.0f : exp_of(*top - block_top);
    const Vec f = broadcast(factor);
    for (int d = 0; d < dim; d += kW) {
      store(sums + d, mul(load(sums + d), f));
    }
    store(total, mul(load(total), f));
    *top = block_top;
  }
  const Vec anchor = broadcast(*top);
  Vec sum = load(total);
  for (int t = 0; t < n; t += kW) {
    const Vec weight = exp_of(sub(load(scores + t), anchor));
    store(scores + t, weight);
    sum = add(sum, weight);
  }
  store(total, sum);
}

// The pages of a unit for one head, followed by the first ones of the next unit.
struct Pages {
  char* at[kMaxUnitPages + kMaxAhead];
  int num;
};
static int list_pages(const AttendJob& job, const Unit& unit, int head, int limit, char** at) {
  const Layout& l = *job.layout;
  const int32_t* table = job.tables + job.table_offsets[unit.row];
  const int first = unit.start / l.page_tokens;
  const int last = (unit.stop - 1) / l.page_tokens;
  int n = 0;
  for (int p = first; p <= last && n < limit; ++p, ++n) {
    at[n] = job.layer + table[p] * l.page_stride + static_cast<int64_t>(head) * 2 * l.tile_bytes;
  }
  return n;
}

static void append_own(const AttendJob& job, const Unit& unit, int head, char* page) {
  const Layout& l = *job.layout;
  const int slot = (unit.stop - 1) % l.page_tokens;
  write_head(l, page, slot, 1, job.k, job.v, unit.row, static_cast<int64_t>(head) * l.head_dim);
}

static void load_queries(const AttendJob& job, int row, int head, float* q) {
  const Layout& l = *job.layout;
  const int64_t item = item_bytes(job.q.format);
  const char* from = job.q.data + row * job.q.stride +
                     static_cast<int64_t>(head) * l.group * l.head_dim * item;
  for (int g = 0; g < l.group; ++g) {
    widen_row(job.q.format, from + g * l.head_dim * item, q + g * padded_dim(l), l.head_dim,
              l.scale);
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
      job.lse[row * job.lse_stride + query_head] = s.top[g] + __builtin_logf(total);
    }
  }
}

static void attend_unit(const AttendJob& job, const Unit& unit, int32_t head, const Unit* next,
                        int32_t next_head, float* scratch) {
  const Layout& l = *job.layout;
  const int dim = l.head_dim, tokens = l.page_tokens, stride = padded_dim(l);
  float* q = scratch + partial_floats(l);
  float* scores = q + static_cast<int64_t>(l.group) * stride;
  const int64_t score_stride = block_stride(l);
  const bool is_whole = unit.num_parts == 1;
  float* at = is_whole ? scratch
                       : job.partials + (unit.part * l.num_kv_heads + head) * partial_floats(l);
  const State s = state_at(l, at);
  memset(at, 0, static_cast<size_t>(partial_floats(l)) * sizeof(float));
  for (int g = 0; g < l.group; ++g) {
    s.top[g] = kLowest;
  }

  Pages pages;
  pages.num = list_pages(job, unit, head, kMaxUnitPages, pages.at);
  int ahead = pages_ahead(l);
  int known = pages.num;
  if (next != nullptr) {  // no further than it reaches: the one behind it is not known
    const int reached = list_pages(job, *next, next_head, ahead, pages.at + known);
    known += reached;
    ahead = reached;
  }
  if (job.k.data != nullptr && unit.stop == job.lengths[unit.row]) {
    append_own(job, unit, head, pages.at[pages.num - 1]);
  }
  load_queries(job, unit.row, head, q);

  HeadBlock blocks[kMaxGroup];
  const int num_blocks = head_blocks(l, blocks);
  const int origin = unit.start / tokens * tokens;  // token of the first page's slot 0
  const int step = block_pages(l);
  for (int first = 0; first < pages.num; first += step) {
    const int count = pages.num - first < step ? pages.num - first : step;
    for (int p = 0; p < count; ++p) {
      const int j = first + p;
      const char* later = j + ahead < known ? pages.at[j + ahead] : nullptr;
      for (int b = 0; b < num_blocks; ++b) {
        const int64_t h = blocks[b].first;
        blocks[b].kernels.score(pages.at[j], dim, tokens, q + h * stride, stride,
                                scores + h * score_stride + p * tokens, score_stride,
                                b == 0 ? later : nullptr);
      }
    }
    const int base = origin + first * tokens;
    const int low = unit.start > base ? unit.start - base : 0;
    const int high = unit.stop - base < count * tokens ? unit.stop - base : count * tokens;
    for (int g = 0; g < l.group; ++g) {
      soften(scores + g * score_stride, count * tokens, low, high, s.sums + g * stride, stride,
             &s.top[g], s.total + 16 * g);
    }
    for (int p = 0; p < count; ++p) {
      const int j = first + p;
      const char* later = j + ahead < known ? pages.at[j + ahead] + l.tile_bytes : nullptr;
      const int begin = low > p * tokens ? low - p * tokens : 0;
      const int end = high - p * tokens < tokens ? high - p * tokens : tokens;
      for (int b = 0; b < num_blocks; ++b) {
        const int64_t h = blocks[b].first;
        blocks[b].kernels.weigh(
            pages.at[j] + l.tile_bytes + begin * dim * item_bytes(l.format), dim, end - begin,
            scores + h * score_stride + p * tokens + begin, score_stride, s.sums + h * stride,
            stride, b == 0 ? later : nullptr);
      }
    }
  }
  if (is_whole) {
    write_result(job, unit.row, head, s);
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
      top = one.top[g] <= top ? top : one.top[g];
    }
    s.top[g] = top;
    for (int part = 0; part < any.num_parts; ++part) {
      const int64_t index = (any.first_part + part) * l.num_kv_heads + head;
      const State one = state_at(l, job.partials + index * size);
      const Vec f = exp_of(broadcast(one.top[g] - top));
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
  return {name,      scratch_floats, partial_floats, attend_unit, merge_row,
          clear_row, append_rows,    read_rows,      read_memory};
}
