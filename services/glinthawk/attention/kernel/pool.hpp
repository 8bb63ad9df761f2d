// Threads that sleep until there is work: processes share the cores, so nothing spins.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace glinthawk {

class Pool {
 public:
  // A job is called once by each thread that takes part and returns when no work is left.
  using Job = void (*)(void* context, int thread);

  explicit Pool(int num_threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Runs `job` on the calling thread (as thread 0) and up to `num_threads` - 1 others. A
  // thread that wakes too late to help is not waited for.
  void run(int num_threads, Job job, void* context);

 private:
  void work(int thread);

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  int open_places_ = 0;  // threads that may still join the job
  int active_ = 0;       // threads in the job
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace glinthawk
