// The Python face: checks shapes, formats and ranges, raises ValueError, then releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "engine.hpp"
#include "isas.hpp"

namespace glinthawk {
namespace {

using namespace nb::literals;

const Isa& require_isa(const std::string& name) {
  const Isa* isa = find_isa(name);
  if (isa == nullptr) {
    refuse("instruction set " + name + " is unknown, or this CPU or build lacks it");
  }
  return *isa;
}

struct BoundPlan {
  const void* owner;
  std::shared_ptr<const void> keeps_owner;  // so that no later backend has its address
  Plan plan;
};

class Kernel {
 public:
  Kernel(int num_layers, int num_query_heads, int num_kv_heads, int head_dim, int page_tokens,
         int num_pages, int format, double scale, const std::vector<int32_t>& windows,
         int num_threads, const std::string& isa)
      : engine_(std::make_shared<Engine>(
            build_layout(num_layers, num_query_heads, num_kv_heads, head_dim, page_tokens,
                         num_pages, format, scale, windows, num_threads),
            windows, require_isa(isa), num_threads)) {}

  std::string isa() const { return engine_->isa().name; }

  std::unique_ptr<BoundPlan> plan(const Ints& tables, const Offsets& offsets,
                                  const Ints& lengths, const std::optional<Ints>& starts,
                                  const std::optional<Ints>& positions) const {
    const auto num = static_cast<int64_t>(lengths.size());
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    check_below("lengths", lengths, num, kMost);
    check_below("page tables", tables, static_cast<int64_t>(tables.size()), layout().num_pages);
    check_offsets(offsets, lengths, static_cast<int64_t>(tables.size()));
    std::vector<int32_t> from(static_cast<size_t>(num), 0);
    std::vector<int32_t> at(static_cast<size_t>(num), 0);
    for (size_t i = 0; i < lengths.size(); ++i) {
      at[i] = lengths.data()[i] - 1;
    }
    if (starts) {
      check_below("starts", *starts, num, kMost);
      from = copy_of(*starts);
    }
    if (positions) {
      check_below("positions", *positions, num, kMost);
      at = copy_of(*positions);
    }
    std::vector<int64_t> table_at(offsets.data(), offsets.data() + offsets.size());
    nb::gil_scoped_release released;
    return std::unique_ptr<BoundPlan>(new BoundPlan{
        engine_.get(), engine_,
        Plan(copy_of(tables), std::move(table_at), copy_of(lengths), std::move(from),
             std::move(at), engine_->windows())});
  }

  void attend(int layer, const BoundPlan& bound, const In& q, const Out& out,
              const std::optional<Out>& lse) const {
    run(layer, bound, q, nullptr, nullptr, out, lse);
  }

  void decode(int layer, const BoundPlan& bound, const In& q, const In& k, const In& v,
              const Out& out) const {
    if (!bound.plan.can_append()) {
      refuse("decode needs a plan without positions, and at least one token of each sequence");
    }
    run(layer, bound, q, &k, &v, out, std::nullopt);
  }

  void append(int layer, const Ints& pages, const Ints& slots, const In& k, const In& v) const {
    check_layer(layer);
    const auto num = static_cast<int64_t>(pages.size());
    check_below("pages", pages, num, layout().num_pages);
    check_below("slots", slots, num, layout().page_tokens);
    const Rows k_rows = rows_of("k", k, num, kv_columns());
    const Rows v_rows = rows_of("v", v, num, kv_columns());
    nb::gil_scoped_release released;
    engine_->append(layer, pages.data(), slots.data(), num, k_rows, v_rows);
  }

  void read(int layer, const Ints& table, int64_t start, int64_t stop, const Out& k,
            const Out& v) const {
    check_layer(layer);
    const int64_t held = static_cast<int64_t>(table.size()) * layout().page_tokens;
    if (start < 0 || start > stop || stop > held ||
        stop > std::numeric_limits<int32_t>::max()) {
      refuse("tokens " + text(start) + " to " + text(stop) + " are no range of a table of " +
             text(held) + " tokens");
    }
    check_below("page table", table, static_cast<int64_t>(table.size()), layout().num_pages);
    const Rows k_rows = rows_of("k", k, stop - start, kv_columns());
    const Rows v_rows = rows_of("v", v, stop - start, kv_columns());
    nb::gil_scoped_release released;
    engine_->read(layer, table.data(), static_cast<int32_t>(start), stop - start, k_rows,
                  v_rows);
  }

  void copy_page(int64_t source, int64_t target) const {
    for (const int64_t page : {source, target}) {
      if (page < 0 || page >= layout().num_pages) {
        refuse("page " + text(page) + " is not one of " + text(layout().num_pages));
      }
    }
    nb::gil_scoped_release released;
    engine_->copy_page(source, target);
  }

  void expect(int64_t num_pages) const {
    if (num_pages < 0 || num_pages > layout().num_pages) {
      refuse("num_pages " + text(num_pages) + " is not from 0 to " + text(layout().num_pages));
    }
    engine_->expect(num_pages);
  }

 private:
  static Layout build_layout(int num_layers, int num_query_heads, int num_kv_heads, int head_dim,
                             int page_tokens, int num_pages, int format, double scale,
                             const std::vector<int32_t>& windows, int num_threads) {
    if (num_layers < 1 || num_kv_heads < 1 || num_query_heads < 1 || num_pages < 1) {
      refuse("layers, heads and pages must be at least 1");
    }
    if (num_threads < 1 || num_threads > 1024) {
      refuse("num_threads " + text(num_threads) + " is not from 1 to 1024");
    }
    if (num_query_heads % num_kv_heads != 0 || num_query_heads / num_kv_heads > kMaxGroup) {
      refuse(text(num_query_heads) + " query heads is no multiple, up to " + text(kMaxGroup) +
             "-fold, of " + text(num_kv_heads) + " KV heads");
    }
    if (head_dim < 8 || head_dim > kMaxHeadDim || head_dim % 8 != 0) {
      refuse("head_dim " + text(head_dim) + " is no multiple of 8 up to " + text(kMaxHeadDim));
    }
    if (page_tokens < kMinPageTokens || page_tokens % 16 != 0 || page_tokens > kSplitTokens ||
        kSplitTokens % page_tokens != 0) {
      refuse("page_tokens " + text(page_tokens) + " is no multiple of 16 that divides " +
             text(kSplitTokens));
    }
    if (format < 1 || format > 3) {
      refuse("format " + text(format) + " is unknown");
    }
    if (static_cast<int64_t>(windows.size()) != num_layers) {
      refuse(text(static_cast<int64_t>(windows.size())) + " windows for " + text(num_layers) +
             " layers");
    }
    if (!(scale > 0) || !std::isfinite(scale)) {
      refuse("scale must be finite and above 0");
    }
    const int64_t tile = static_cast<int64_t>(head_dim) * page_tokens * (format == 1 ? 4 : 2);
    int64_t total = tile;
    for (const int64_t factor : {int64_t{2}, int64_t{num_kv_heads}, int64_t{num_pages},
                                 int64_t{num_layers}}) {
      if (__builtin_mul_overflow(total, factor, &total) || total > int64_t{1} << 46) {
        refuse("the arena would be larger than 64 TiB");
      }
    }
    const int64_t page = tile * 2 * num_kv_heads;
    return {num_layers, num_query_heads, num_kv_heads, num_query_heads / num_kv_heads, head_dim,
            page_tokens, num_pages, static_cast<Format>(format), static_cast<float>(scale), tile,
            page, page * num_pages};
  }

  const Layout& layout() const { return engine_->layout(); }
  int64_t kv_columns() const {
    return static_cast<int64_t>(layout().num_kv_heads) * layout().head_dim;
  }
  void check_layer(int layer) const {
    if (layer < 0 || layer >= layout().num_layers) {
      refuse("layer " + text(layer) + " is not one of " + text(layout().num_layers));
    }
  }
  void check_offsets(const Offsets& offsets, const Ints& lengths, int64_t num_entries) const {
    if (offsets.size() != lengths.size() + 1 || offsets.data()[0] != 0 ||
        offsets.data()[lengths.size()] != num_entries) {
      refuse("the page tables' offsets do not span them");
    }
    for (size_t row = 0; row < lengths.size(); ++row) {
      const int64_t begin = offsets.data()[row], end = offsets.data()[row + 1];
      if (begin < 0 || begin > end || end > num_entries ||
          (end - begin) * layout().page_tokens < lengths.data()[row]) {
        refuse("page table " + text(static_cast<int64_t>(row)) + " does not hold " +
               text(lengths.data()[row]) + " tokens");
      }
    }
  }

  void run(int layer, const BoundPlan& bound, const In& q, const In* k, const In* v,
           const Out& out, const std::optional<Out>& lse) const {
    check_layer(layer);
    if (bound.owner != engine_.get()) {
      refuse("the plan was built by another backend");
    }
    const int64_t num = bound.plan.num_rows();
    const int64_t columns = static_cast<int64_t>(layout().num_query_heads) * layout().head_dim;
    const Rows q_rows = rows_of("q", q, num, columns);
    const Rows out_rows = rows_of("out", out, num, columns);
    const Rows none{nullptr, 0, Format::kFloat32};
    const Rows k_rows = k != nullptr ? rows_of("k", *k, num, kv_columns()) : none;
    const Rows v_rows = v != nullptr ? rows_of("v", *v, num, kv_columns()) : none;
    float* lse_data = nullptr;
    int64_t lse_stride = 0;
    if (lse) {
      const Rows lse_rows = rows_of("lse", *lse, num, layout().num_query_heads);
      if (lse_rows.format != Format::kFloat32) {
        refuse("lse is not float32");
      }
      lse_data = reinterpret_cast<float*>(lse_rows.data);
      lse_stride = lse_rows.stride / 4;
    }
    nb::gil_scoped_release released;
    engine_->attend(layer, bound.plan, q_rows, k_rows, v_rows, out_rows, lse_data, lse_stride);
  }

  std::shared_ptr<Engine> engine_;
};

double measure_read_bandwidth(int64_t num_bytes, int num_threads, int repeats,
                              const std::string& isa) {
  if (num_bytes < (1 << 20) || num_threads < 1 || num_threads > 1024 || repeats < 1) {
    refuse("read_bandwidth needs at least 1 MiB, 1 thread and 1 pass");
  }
  const Isa& found = require_isa(isa);
  nb::gil_scoped_release released;
  return read_bandwidth(num_bytes, num_threads, repeats, found);
}

}  // namespace

NB_MODULE(_kernel, m) {
  m.def("supported_isas", &supported_isas);
  m.def("read_bandwidth", &measure_read_bandwidth, "num_bytes"_a, "num_threads"_a, "repeats"_a,
        "isa"_a);
  nb::class_<BoundPlan>(m, "Plan").def_prop_ro(
      "num_rows", [](const BoundPlan& bound) { return bound.plan.num_rows(); });
  nb::class_<Kernel>(m, "Kernel")
      .def(nb::init<int, int, int, int, int, int, int, double, const std::vector<int32_t>&, int,
                    const std::string&>(),
           "num_layers"_a, "num_query_heads"_a, "num_kv_heads"_a, "head_dim"_a, "page_tokens"_a,
           "num_pages"_a, "format"_a, "scale"_a, "windows"_a, "num_threads"_a, "isa"_a)
      .def_prop_ro("isa", &Kernel::isa)
      .def("plan", &Kernel::plan, "tables"_a, "offsets"_a, "lengths"_a,
           "starts"_a.none(), "positions"_a.none())
      .def("attend", &Kernel::attend, "layer"_a, "plan"_a, "q"_a, "out"_a, "lse"_a.none())
      .def("decode", &Kernel::decode, "layer"_a, "plan"_a, "q"_a, "k"_a, "v"_a, "out"_a)
      .def("append", &Kernel::append, "layer"_a, "pages"_a, "slots"_a, "k"_a, "v"_a)
      .def("read", &Kernel::read, "layer"_a, "table"_a, "start"_a, "stop"_a, "k"_a, "v"_a)
      .def("copy_page", &Kernel::copy_page, "source"_a, "target"_a)
      .def("expect", &Kernel::expect, "num_pages"_a);
}

}  // namespace glinthawk
