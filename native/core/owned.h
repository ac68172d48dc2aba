// The C++ side of shim.h's "owned": what the generated own_ functions and other files use (owned.cpp).
#pragma once

#include "shim.h"

#include <mutex>

namespace moebind {

void fill(moebind_owned ** owned, void * pointer, void (*free)(void *));

// Have what was made, if anything was, freed by Free.
template <auto Free, class T> T * own(moebind_owned ** owned, T * made) {
    if (made != nullptr) {
        fill(owned, made, [](void * pointer) { Free(static_cast<T *>(pointer)); });
    }
    return made;
}

// Take what is owned from its owner, who then has nothing to free; nobody else may hold it.
void take(void * pointer);

// Hold the list of a model's adapters, which contexts read when they make graphs. Reentrant: the log may call Python, which
// may collect an adapter there. Nothing is held for a model that nobody owns.
std::unique_lock<std::recursive_mutex> adapters_of(const llama_model * model);

}  // namespace moebind
