// What C++ files offer each other, and not Python: a lock that forks wait for (fork.cpp), progress (hooks.cpp).
#pragma once

#include "shim.h"

#include <mutex>

namespace moebind {

// For what is used rarely and shortly: the child of a fork finds it unlocked. The thread that forks holds it already, and
// gets nothing to unlock.
std::unique_lock<std::mutex> fork_lock();

// Called once: the child of a fork frees nothing that its parent made (owned.cpp).
void count_forks();

// Tell Python's progress callback, if there is one; false when what runs is to stop, be it for Ctrl-C.
bool progress(moebind_hooks * hooks, float fraction);

// llama-common has a log of its own, which nobody reads (peek/llama_common.cpp).
void silence_llama_common();

}  // namespace moebind
