// What the loop that writes text does with each token, in as few calls as can be.
#include "shim.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

// In blocks, of which the first with the highest logit is searched for its place, and in lanes, which compilers turn into
// vectors; std::max_element takes twenty times as long.
llama_token moebind_likeliest(const float * logits, int32_t n) {
    constexpr int32_t block = 1024, lanes = 32;
    float             most  = -std::numeric_limits<float>::infinity();
    const float *     begun = nullptr;
    for (int32_t at = 0; at < n; at += block) {
        const float *     part = logits + at;
        const int32_t     size = std::min(block, n - at);
        float             highest[lanes];
        std::fill_n(highest, lanes, -std::numeric_limits<float>::infinity());
        int32_t i = 0;
        for (; i + lanes <= size; i += lanes) {
            for (int32_t lane = 0; lane < lanes; lane++) {
                const float logit = part[i + lane];
                highest[lane]     = logit > highest[lane] ? logit : highest[lane];
            }
        }
        for (; i < size; i++) {
            highest[0] = part[i] > highest[0] ? part[i] : highest[0];
        }
        const float found = *std::max_element(highest, highest + lanes);
        if (found > most) {
            most  = found;
            begun = part;
        }
    }
    return begun == nullptr ? 0 : std::find(begun, logits + n, most) - logits;  // NaN or minus infinity everywhere
}

namespace {

// llama_decode, whose errors are logged as mere information if it fails: an exception says it then.
int32_t quoted_decode(llama_context * ctx, const llama_batch & batch) {
    struct held_log {
        ggml_log_level level = GGML_LOG_LEVEL_INFO;
        held_log() {
            moebind_log_forget();
            moebind_log_hold();
        }
        ~held_log() { moebind_log_release(level); }
    } log;
    const int32_t code = llama_decode(ctx, batch);
    if (code == 0) {
        log.level = GGML_LOG_LEVEL_ERROR;
    }
    return code;
}

}  // namespace

int32_t moebind_step(llama_context * ctx, moebind_hooks * hooks, llama_batch batch, llama_token token, llama_pos pos,
                     llama_token * next) {
    batch.token[0] = token;
    batch.pos[0]   = pos;
    // Asked for before it began: not every device would look.
    const int32_t code = moebind_hooks_aborted(hooks) ? 2 : quoted_decode(ctx, batch);
    if (code == 0) {
        const float * logits = llama_get_logits_ith(ctx, -1);
        if (logits == nullptr) {
            throw std::runtime_error("the context computed no logits");
        }
        *next = moebind_likeliest(logits, llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))));
    }
    return code;
}

int32_t moebind_next_piece(const llama_vocab * vocab, llama_token token, bool special, char * buffer, int32_t size) {
    return llama_vocab_is_eog(vocab, token) ? MOEBIND_END_OF_GENERATION
                                            : llama_token_to_piece(vocab, token, buffer, size, 0, special);
}
