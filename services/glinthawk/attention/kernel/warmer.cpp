#include "warmer.hpp"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace glinthawk {
namespace {

constexpr int64_t kSystemPage = 4096;  // the smallest there is: larger ones are touched more often
constexpr int64_t kStepBytes = 2 << 20;
constexpr int kLowestPriority = 19;

// Writes to every page of the system in [begin, end) without changing what is there, whoever
// else writes meanwhile.
void touch(char* begin, char* end) {
  const auto misaligned = reinterpret_cast<uintptr_t>(begin) % kSystemPage;
  for (volatile char* at = begin - misaligned; at < end; at += kSystemPage) {
    __atomic_fetch_or(at, 0, __ATOMIC_RELAXED);
  }
}

}  // namespace

Warmer::Warmer(char* arena, const Layout& layout)
    : arena_(arena), layout_(layout), thread_([this] { work(); }) {}

Warmer::~Warmer() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void Warmer::expect(int64_t num_pages) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    num_wanted_ = std::max(num_wanted_, num_pages);
  }
  changed_.notify_one();
}

void Warmer::work() {
  // Of this thread alone, on Linux, and beside threads of its process or, at most, container.
  setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), kLowestPriority);
  const int64_t step = std::max<int64_t>(1, kStepBytes / layout_.page_stride);
  int64_t num_ready = 0;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [&] { return stop_ || num_ready < num_wanted_; });
    }
    const int64_t end = std::min<int64_t>(layout_.num_pages, num_ready + step);
    for (int layer = 0; layer < layout_.num_layers; ++layer) {
      if (is_stopped()) {
        return;
      }
      char* pages = arena_ + layer * layout_.layer_stride;
      touch(pages + num_ready * layout_.page_stride, pages + end * layout_.page_stride);
    }
    num_ready = end;
  }
}

bool Warmer::is_stopped() {
  std::lock_guard<std::mutex> lock(mutex_);
  return stop_;
}

}  // namespace glinthawk
