// The narrow waist of the kernel: plain data, and one table of functions per instruction set.
//
// Each isa_*.cpp is compiled with its own machine flags and exports only its table. Nothing
// inline is shared between those files and the rest, so that no function compiled for a newer
// CPU can end up in a path that an older one runs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace glinthawk {

enum class Format : int32_t { kFloat32 = 1, kFloat16 = 2, kBFloat16 = 3 };

constexpr int kMaxGroup = 16;
constexpr int kMaxHeadDim = 256;
constexpr int kSplitTokens = 512;
constexpr int kMinPageTokens = 16;

// The arena, private to the kernel:
//
//   [layer][page][KV head] { K tile: [head_dim][page_tokens], V tile: [page_tokens][head_dim] }
//
// K lies transposed, so that a vector holds one component of consecutive tokens and no score
// ends in a horizontal sum.
struct Layout {
  int32_t num_layers;
  int32_t num_query_heads;
  int32_t num_kv_heads;
  int32_t group;  // query heads per KV head
  int32_t head_dim;
  int32_t page_tokens;
  int32_t num_pages;
  Format format;
  float scale;
  int64_t tile_bytes;   // a K tile or a V tile
  int64_t page_stride;  // one page of one layer
  int64_t layer_stride;
};

// Rows of a wire format; `stride` in bytes.
struct Rows {
  char* data;
  int64_t stride;
  Format format;
};

// Work: tokens [start, stop) of one row, within one multiple of kSplitTokens.
struct Unit {
  int32_t row;
  int32_t start;
  int32_t stop;
  int32_t num_parts;  // units of the row
  int64_t first_part;  // index of the row's first partial result; its parts lie together
  int64_t part;
};

// What one thread does at a time: a unit for KV heads [first_head, first_head + num_heads).
struct Item {
  const Unit* unit;
  int32_t first_head;
  int32_t num_heads;
};

struct AttendJob {
  const Layout* layout;
  char* layer;  // first page of the layer
  const int32_t* tables;
  const int64_t* table_offsets;
  const int32_t* lengths;
  Rows q;
  Rows k;  // data null: nothing is appended
  Rows v;
  Rows out;
  float* lse;  // null: not wanted
  int64_t lse_stride;  // in floats
  float* partials;
};

struct AppendJob {
  const Layout* layout;
  char* layer;
  const int32_t* pages;
  const int32_t* slots;
  Rows k;
  Rows v;
};

struct ReadJob {
  const Layout* layout;
  const char* layer;
  const int32_t* table;
  int32_t start;
  Rows k;
  Rows v;
};

struct Isa {
  const char* name;
  // Floats of scratch that a thread needs.
  int64_t (*scratch_floats)(const Layout&);
  // Floats of one partial result of one KV head.
  int64_t (*partial_floats)(const Layout&);
  // `next` (may be null) is what this thread does next; the start of its first page is
  // prefetched.
  void (*attend_item)(const AttendJob&, const Item&, const Item* next, float* scratch);
  // Joins the parts of a row, in their order, and writes its output.
  void (*merge_row)(const AttendJob&, const Unit& any, int32_t head, float* scratch);
  void (*clear_row)(const AttendJob&, int32_t row);
  void (*append_rows)(const AppendJob&, int64_t begin, int64_t end);
  // Copies tokens [begin, end), counted from the job's start.
  void (*read_rows)(const ReadJob&, int64_t begin, int64_t end);
  // Reads every byte (a multiple of 1,024) and folds it into a number.
  uint64_t (*read_memory)(const char* data, int64_t num_bytes);
};

const Isa* isa_portable();
const Isa* isa_portable16();
const Isa* isa_avx2();    // null where not compiled
const Isa* isa_avx512();  // null where not compiled

}  // namespace glinthawk
