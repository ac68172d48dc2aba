// What libllama, with our way to load headers in it (checked_headers.cpp), offers the extension.
#pragma once
#include "gguf.h"

#include <cstddef>

// How many headers this thread has that its next loads may take.
extern "C" __attribute__((visibility("default"))) size_t moebind_handed_headers();

// Have this thread's next load of that file take a header that was read already, and free it as one of its own.
extern "C" __attribute__((visibility("default"))) void moebind_hand_header(const char * path, gguf_context * header);

// Free those of this thread that no load took, but for the first so many.
extern "C" __attribute__((visibility("default"))) void moebind_drop_headers(size_t kept);
