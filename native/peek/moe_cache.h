// What moe_cache.cpp tells context.cpp.
#pragma once

#include "ggml-backend.h"

#include <cstddef>
#include <map>

struct llama_context;

namespace moebind {

// Bytes of a context's cache of experts, by buffer type; empty when it has none.
std::map<ggml_backend_buffer_type_t, size_t> moe_cache_sizes(const llama_context & ctx);

}  // namespace moebind
