// A large stack, for what recurses as deep as its input is long.
//
// std::regex takes some 300 bytes of stack for each character that a repetition matches, and the parsers and the
// template engine of llama.cpp recurse over what they are given. A thread's usual 8 MiB end there, and the process with
// them.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>

namespace moebind {

// How many bytes of stack this thread has left, less a margin.
size_t stack_left() noexcept;

// Call `body` with at least `bytes` of stack: here where there are as many, otherwise on a thread of its own, which is
// waited for. Only memory that is touched is used. What `body` throws comes back, and failed assertions in it throw.
//
// With `stop`, `body` always runs on a thread of its own; Ctrl-C sets it, and is raised when `body` has returned.
void on_big_stack(size_t bytes, const std::function<void()> & body, std::atomic<bool> * stop = nullptr);

}  // namespace moebind
