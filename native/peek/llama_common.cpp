// What llama.cpp's own programs decide, in llama-common: how many threads compute, which tensors are experts. And
// llama-common's log, which is not libllama's.
#include "common.h"
#include "internal.h"
#include "log.h"

// It would write to standard error, from a thread of its own. What matters it also throws.
void moebind::silence_llama_common() { common_log_set_verbosity_thold(-1); }

int32_t moebind_default_n_threads(void) { return common_cpu_get_num_math(); }

const char * moebind_ffn_exps_regex(void) { return LLM_FFN_EXPS_REGEX; }
