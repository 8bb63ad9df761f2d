// The two products over a page: queries times K, weights times V. Written once over the vector
// type `Vec`; included inside the namespace of an instruction set.
//
// Each walks its tile in order, in as few passes as the registers allow: one where a row fits them.
// The CPU's own prefetching follows then. `ahead` (may be null) is the tile that is prefetched
// meanwhile. Loops over sums are unrolled by pragma: without it GCC keeps the sums in memory.

constexpr int kChains = 8;  // sums in flight that hide the latency of a multiplication

// A pass over whole vectors of a tile prefetches its share of the tile ahead, into the second
// cache, in order of address: the loads of memory stay even, and as many as the arithmetic
// between them.
template <int64_t Step>
static inline void prefetch(const char* ahead, int64_t iteration) {
  for (int64_t line = 0; line < Step; line += 64) {
    __builtin_prefetch(ahead + iteration * Step + line, 0, 2);
  }
}

// NV vectors of items, two at a time in the order in which they are cheapest to widen.
template <Format F, int NV>
static inline void load_run(const char* from, Vec* x) {
  if constexpr (NV == 1) {
    x[0] = load_as<F>(from);
  } else {
#pragma GCC unroll 16
    for (int v = 0; v < NV; v += 2) {
      load_two<F>(from + v * kW * item_bytes(F), x + v);
    }
  }
}

// Stores sums that are in that order in the order of memory.
template <Format F, int NV>
static inline void store_run(float* to, Vec* x) {
#pragma GCC unroll 16
  for (int v = 0; v + 1 < NV; v += 2) {
    to_memory_order<F>(x + v);
  }
#pragma GCC unroll 16
  for (int v = 0; v < NV; ++v) {
    store(to + v * kW, x[v]);
  }
}

// ---- scores ---------------------------------------------------------------------------------

// scores[g][t] = q[g] . K[:, t] for tokens [0, NV * kW) from `tile` on.
template <Format F, int G, int NV, bool Prefetch>
static inline void score_tokens(const char* tile, int dim, int tokens, const float* q,
                                int64_t q_stride, float* scores, int64_t score_stride,
                                const char* ahead) {
  constexpr int kFit = kChains / (G * NV);
  constexpr int kUnroll = kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;  // divides head_dim
  Vec sum[kUnroll][G][NV];
#pragma GCC unroll 16
  for (int u = 0; u < kUnroll; ++u) {
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) {
        sum[u][g][v] = zero();
      }
    }
  }
  const int64_t row_bytes = tokens * item_bytes(F);
  for (int d = 0; d < dim; d += kUnroll) {
#pragma GCC unroll 16
    for (int u = 0; u < kUnroll; ++u) {
      const char* row = tile + (d + u) * row_bytes;
      if constexpr (Prefetch) {
        prefetch<NV * kW * item_bytes(F)>(ahead, d + u);
      }
      Vec k[NV];
      load_run<F, NV>(row, k);
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) {
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) {
          sum[u][g][v] = fma_at(q + g * q_stride + d + u, k[v], sum[u][g][v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 16
    for (int u = 1; u < kUnroll; ++u) {
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) {
        sum[0][g][v] = add(sum[0][g][v], sum[u][g][v]);
      }
    }
    store_run<F, NV>(scores + g * score_stride, sum[0][g]);
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
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) {
      sum[g][v] = load(sums + g * sum_stride + v * kW);
    }
#pragma GCC unroll 16
    for (int v = 0; v + 1 < NV; v += 2) {
      from_memory_order<F>(sum[g] + v);
    }
  }
  const int64_t row_bytes = dim * item_bytes(F);
  for (int t = 0; t < num_tokens; ++t) {
    const char* row = tile + t * row_bytes;
    if constexpr (Prefetch) {
      prefetch<NV * kW * item_bytes(F)>(ahead, t);
    }
    Vec x[NV];
    if constexpr (Eight) {
      x[0] = load_eight<F>(row);
    } else {
      load_run<F, NV>(row, x);
    }
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) {
        sum[g][v] = fma_at(weights + g * weight_stride + t, x[v], sum[g][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) {
    store_run<F, NV>(sums + g * sum_stride, sum[g]);
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
  constexpr int kNv = kFit >= 16 ? 16 : kFit >= 8 ? 8 : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
  const int column = weigh_while<F, G, kNv>(0, tile, dim, num_tokens, weights, weight_stride,
                                            sums, sum_stride, ahead);
  if (column < dim) {  // the last eight columns of a width of sixteen
    weigh_columns<F, G, 1, true, false>(tile + column * item_bytes(F), dim, num_tokens, weights,
                                        weight_stride, sums + column, sum_stride, nullptr);
  }
}

// ---- by number of query heads ---------------------------------------------------------------

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
