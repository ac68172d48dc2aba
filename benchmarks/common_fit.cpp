// llama.cpp's own fit of parameters to memory, for fit.py, which compiles this beside the installed libraries.
#include "fit.h"
#include "log.h"

#include <exception>

extern "C" bool moebind_count_only(bool on);

// 0 done, 1 nothing fits, 2 failed. One thread at a time. Pointers come as Python has them.
extern "C" int common_fit(const char * path, llama_model_params * model, llama_context_params * context, float * tensor_split,
                          llama_model_tensor_buft_override * overrides, size_t * margins, uint32_t n_ctx_min) {
    common_log_set_verbosity_thold(-1);
    const bool before = moebind_count_only(true);
    int        status = 2;
    try {
        status = common_fit_params(path, model, context, tensor_split, overrides, margins, n_ctx_min, nullptr, GGML_LOG_LEVEL_NONE);
    } catch (const std::exception &) {
    }
    moebind_count_only(before);
    return status;
}
