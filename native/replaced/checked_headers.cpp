// Headers that were read and checked before a load, and are neither read again nor anything else by then.
#include "ggml.h"
#include "handed_headers.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

namespace {

thread_local std::vector<std::pair<std::string, gguf_context *>> handed;

// Tensors without data, as gguf_init_from_file makes them; null if there is no memory for them.
ggml_context * tensors_of(const gguf_context * header) {
    const int64_t  n    = gguf_get_n_tensors(header);
    ggml_context * made = ggml_init({ (size_t) n * ggml_tensor_overhead(), nullptr, /*no_alloc =*/ true });
    for (int64_t i = 0; made != nullptr && i < n; i++) {
        ggml_tensor * tensor =
            ggml_new_tensor(made, gguf_get_tensor_type(header, i), GGML_MAX_DIMS, gguf_get_tensor_ne(header, i));
        ggml_set_name(tensor, gguf_get_tensor_name(header, i));
    }
    return made;
}

// The loader opens the file next, and would lose the tensors if it could not.
bool is_there(const char * path) {
    FILE * file = std::fopen(path, "rb");
    return file != nullptr && std::fclose(file) == 0;
}

}  // namespace

size_t moebind_handed_headers() { return handed.size(); }

void moebind_hand_header(const char * path, gguf_context * header) { handed.emplace_back(path, header); }

void moebind_drop_headers(size_t kept) {
    for (; handed.size() > kept; handed.pop_back()) {
        gguf_free(handed.back().second);
    }
}

// What llama-model-loader.cpp calls for gguf_init_from_file (checked_headers.h).
gguf_context * moebind_checked_header(const char * path, gguf_init_params params) {
    // The last one: those before it are of a load that waits for this one.
    const auto found =
        std::find_if(handed.rbegin(), handed.rend(), [path](const auto & each) { return each.first == path; });
    ggml_context * tensors = found != handed.rend() && is_there(path) ? tensors_of(found->second) : nullptr;
    if (tensors == nullptr) {
        return gguf_init_from_file(path, params);
    }
    gguf_context * header = found->second;
    handed.erase(std::next(found).base());
    *params.ctx = tensors;
    return header;
}
