// Online softmax: the state of query heads, and a page's scores turned into weights. Written once
// over the vector type `Vec`; included inside the namespace of an instruction set.

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLowest = -3.0e38f;  // below any score
// A score this far above the anchor moves it: until then no weight exceeds 2^10, and the weights
// need not wait for the page's largest score.
constexpr float kSlack = 10.0f;

static inline int padded_dim(const Layout& l) { return (l.head_dim + 15) / 16 * 16; }

// 2^x for x up to 127, 2^-126 below that: 2^n * 2^r, |r| <= 1/2. The polynomial's largest relative
// error is 1.1e-7, by iterated least squares with p(0) = 1. A NaN stays one: max returns its second
// operand then.
static inline Vec exp2_of(Vec x) {
  x = max(broadcast(-126.0f), x);
  const Vec n = round_even(x);
  const Vec r = sub(x, n);
  Vec p = broadcast(1.3264727e-3f);
  p = fma(p, r, broadcast(9.671513e-3f));
  p = fma(p, r, broadcast(5.5507336e-2f));
  p = fma(p, r, broadcast(2.4022242e-1f));
  p = fma(p, r, broadcast(6.9314700e-1f));
  p = fma(p, r, broadcast(1.0f));
  return scale_two(p, n);
}
static inline float exp2_of(float x) { return first_of(exp2_of(broadcast(x))); }
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

// State of the query heads of one KV head:
//   sums [group][padded dim] | anchor [16] | total [group][16]
// which is also what a partial result holds.
struct State {
  float* sums;
  float* anchor;  // exponents are relative to it: within kSlack of the largest score so far
  float* total;   // sum of exponentials, a vector for each head, in strides of 16
};
static inline State state_at(const Layout& l, float* at) {
  float* anchor = at + static_cast<int64_t>(l.group) * padded_dim(l);
  return {at, anchor, anchor + kMaxGroup};
}
static int64_t partial_floats(const Layout& l) {
  return static_cast<int64_t>(l.group) * (padded_dim(l) + 16) + kMaxGroup;
}
static inline int64_t query_floats(const Layout& l) {
  return static_cast<int64_t>(l.group) * padded_dim(l);
}
// Scratch of a thread: a state of each KV head | q [KV head][group][padded dim] | scores
// [group][page tokens]
static int64_t scratch_floats(const Layout& l) {
  return l.num_kv_heads * (partial_floats(l) + query_floats(l)) +
         static_cast<int64_t>(l.group) * l.page_tokens;
}

static void move_anchor(float anchor, float* sums, int dim, float* old, float* total) {
  const Vec f = broadcast(exp2_of(*old - anchor));
  for (int d = 0; d < dim; d += kW) {
    store(sums + d, mul(load(sums + d), f));
  }
  store(total, mul(load(total), f));
  *old = anchor;
}

// Turns scores [0, n) of one head into weights; those of tokens outside [low, high) are 2^-126.
static inline void soften(float* scores, int n, int low, int high, float* sums, int dim,
                          float* anchor, float* total) {
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
  if (is_any_above(highest, broadcast(*anchor + kSlack))) {
    move_anchor(first_of(spread_largest(highest)), sums, dim, anchor, total);
  }
  const Vec base = broadcast(*anchor);
  Vec sum = load(total);
  for (int t = 0; t < n; t += kW) {
    const Vec weight = exp2_of(sub(load(scores + t), base));
    store(scores + t, weight);
    sum = add(sum, weight);
  }
  store(total, sum);
}
