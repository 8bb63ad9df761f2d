// Has the system give memory to pages of the arena before they are first written.
//
// The first write to fresh memory waits until the system has found and cleared it: milliseconds
// for a huge page in a virtual machine whose host must find it too. All sequences of a batch may
// reach their next page in one step, so a thread, the last in its process, goes ahead of them.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "api.hpp"

namespace glinthawk {

class Warmer {
 public:
  // `arena`: as `layout` says; must outlive the warmer.
  Warmer(char* arena, const Layout& layout);
  ~Warmer();
  Warmer(const Warmer&) = delete;
  Warmer& operator=(const Warmer&) = delete;

  // Asks for the memory of the first `num_pages` pages; fewer than before change nothing.
  void expect(int64_t num_pages);

 private:
  void work();
  bool is_stopped();

  char* const arena_;
  const Layout& layout_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t num_wanted_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace glinthawk
