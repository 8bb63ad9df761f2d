#include "pool.hpp"

namespace glinthawk {

Pool::Pool(int num_threads) {
  threads_.reserve(static_cast<size_t>(num_threads - 1));
  for (int thread = 1; thread < num_threads; ++thread) {
    threads_.emplace_back([this, thread] { work(thread); });
  }
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

void Pool::run(int num_threads, Job job, void* context) {
  const int others = num_threads - 1;
  if (others > 0) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      context_ = context;
      open_places_ = others;
    }
    for (int i = 0; i < others; ++i) {
      wake_.notify_one();
    }
  }
  job(context, 0);
  if (others > 0) {
    std::unique_lock<std::mutex> lock(mutex_);
    open_places_ = 0;
    done_.wait(lock, [this] { return active_ == 0; });
  }
}

void Pool::work(int thread) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || open_places_ > 0; });
    if (stop_) {
      return;
    }
    --open_places_;
    ++active_;
    const Job job = job_;
    void* const context = context_;
    lock.unlock();
    job(context, thread);
    lock.lock();
    if (--active_ == 0) {
      done_.notify_one();
    }
  }
}

}  // namespace glinthawk
