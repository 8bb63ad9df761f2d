// Rows of a wire format and tiles of the arena: widening, narrowing, writing, reading. Written
// once over the vector type `Vec`; included inside the namespace of an instruction set.

constexpr int kW = Vec::kWidth;

static constexpr int64_t item_bytes(Format f) { return f == Format::kFloat32 ? 4 : 2; }

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

