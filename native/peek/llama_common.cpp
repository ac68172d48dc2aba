// What llama.cpp's own programs decide, in llama-common: how many threads compute, which tensors are experts, and how a
// model is fitted to memory. And llama-common's log, which is not libllama's.
#include "common.h"
#include "counted_memory.h"
#include "fit.h"
#include "internal.h"
#include "log.h"

// It would write to standard error, from a thread of its own. What matters it also throws.
void moebind::silence_llama_common() { common_log_set_verbosity_thold(-1); }

int32_t moebind_default_n_threads(void) { return common_cpu_get_num_math(); }

const char * moebind_ffn_exps_regex(void) { return LLM_FFN_EXPS_REGEX; }

int32_t moebind_common_fit(const char * path, llama_model_params * mparams, llama_context_params * cparams,
                           float * tensor_split, llama_model_tensor_buft_override * overrides, size_t * margins,
                           uint32_t n_ctx_min) {
    moebind::silence_llama_common();
    const moebind_counting counting;
    return common_fit_params(path, mparams, cparams, tensor_split, overrides, margins, n_ctx_min, nullptr,
                             GGML_LOG_LEVEL_NONE);
}
