#include "shim.h"

#include "big_stack.h"
#include "build_info.h"
#include "common.h"
#include "ggml-cpp.h"
#include "llama-context.h"
#include "llama-ext.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <regex>
#include <string>
#include <vector>

// llama_context keeps its output buffer private. An explicit instantiation may name private members, and a friend
// function of it can hand one on.
template <auto Member> struct member_access {
    friend auto & output_of(llama_context & ctx) { return ctx.*Member; }
};
auto & output_of(llama_context & ctx);
template struct member_access<&llama_context::buf_output>;

ggml_backend_buffer_t moebind_take_output(llama_context * ctx) {
    ctx->synchronize();  // nothing is still being copied into it
    return output_of(*ctx).release();
}

const char * moebind_cuda_verdict(void) { return MOEBIND_CUDA_VERDICT; }

#if GGML_CUDA
extern "C" const char * moebind_cuda_unloaded(void);  // cuda_loader.cpp, in libggml.so

const char * moebind_cuda_failure(void) { return moebind_cuda_unloaded(); }
#else
const char * moebind_cuda_failure(void) { return ""; }
#endif

int32_t moebind_default_n_threads(void) { return common_cpu_get_num_math(); }

const char * moebind_ffn_exps_regex(void) { return LLM_FFN_EXPS_REGEX; }

size_t moebind_regex_search(const char * pattern, const char ** names, size_t n_names, bool * matches) {
    // Compiling recurses over the pattern, searching over the longest name.
    size_t longest = std::strlen(pattern);
    for (size_t i = 0; i < n_names; i++) {
        longest = std::max(longest, std::strlen(names[i]));
    }
    size_t found = 0;
    moebind::on_big_stack((size_t(1) << 20) + 4096 * longest, [&] {
        const std::regex regex(pattern);
        for (size_t i = 0; i < n_names; i++) {
            matches[i] = std::regex_search(names[i], regex);
            found += matches[i];
        }
    });
    return found;
}

int32_t moebind_model_n_expert(const llama_model * model) { return llama_model_n_expert(model); }

int32_t moebind_model_n_devices(const llama_model * model) { return llama_model_n_devices(model); }

ggml_backend_dev_t moebind_model_device(const llama_model * model, int32_t i) {
    return llama_model_get_device(model, i);
}

size_t moebind_model_tensors(const llama_model * model, moebind_tensor * tensors, size_t n) {
    const auto & placed = llama_internal_get_tensor_map(model);
    for (size_t i = 0; i < n && i < placed.size(); i++) {
        const ggml_tensor * tensor = placed[i].second;
        tensors[i].name            = placed[i].first.c_str();
        tensors[i].nbytes          = ggml_nbytes(tensor);
        tensors[i].buft            = tensor->buffer ? ggml_backend_buffer_get_type(tensor->buffer) : nullptr;
    }
    return placed.size();
}

size_t moebind_memory_breakdown(const llama_context * ctx, moebind_memory * parts, size_t n) {
    size_t i = 0;
    const llama_memory_breakdown breakdown = llama_get_memory_breakdown(ctx);
    for (const auto & [buft, data] : breakdown) {
        if (i < n) {
            parts[i] = { buft, data.model, data.context, data.compute };
        }
        i++;
    }
    return i;
}
