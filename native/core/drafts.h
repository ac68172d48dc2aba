// A C way to llama-common's speculative decoding. Bound like shim.h, of which it is the part that only drafts.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

// --- speculative decoding (peek/speculative.cpp) ---

// Who drafts: llama-common's numbers.
enum moebind_speculative_type {
    MOEBIND_SPECULATIVE_DRAFT_SIMPLE  = 1,
    MOEBIND_SPECULATIVE_DRAFT_EAGLE3  = 2,
    MOEBIND_SPECULATIVE_DRAFT_MTP     = 3,
    MOEBIND_SPECULATIVE_DRAFT_DFLASH  = 4,
    MOEBIND_SPECULATIVE_DRAFT_DSPARK  = 5,
    MOEBIND_SPECULATIVE_NGRAM_SIMPLE  = 6,
    MOEBIND_SPECULATIVE_NGRAM_MAP_K   = 7,
    MOEBIND_SPECULATIVE_NGRAM_MAP_K4V = 8,
    MOEBIND_SPECULATIVE_NGRAM_MOD     = 9,
    MOEBIND_SPECULATIVE_NGRAM_CACHE   = 10,
};

// Their names, with commas between them; writes at most `size` bytes and returns how many there are.
size_t moebind_speculative_types(char * buffer, size_t size);

struct moebind_speculative;

// Numbers that are negative (n_match and min_hits: 0) are llama-common's defaults. The draft is NULL for n-grams alone.
struct moebind_speculative_params {
    const int32_t *        types;
    size_t                 n_types;
    struct llama_context * target;
    struct llama_context * draft;
    int32_t                n_seq;
    int32_t                n_max, n_min;
    float                  p_min;
    int32_t                n_match, min_hits;
};

// The caller keeps both contexts as long as it, and holds them in each call.
struct moebind_speculative * moebind_speculative_new(const struct moebind_speculative_params * params);
void                         moebind_speculative_free(struct moebind_speculative * spec);
int32_t                      moebind_speculative_n_max(const struct moebind_speculative * spec);

// A text begins, whose first tokens are these.
void moebind_speculative_begin(struct moebind_speculative * spec, llama_seq_id seq_id, const llama_token * tokens, size_t n);

// The target has computed this batch, and nothing since; false when the draft could not follow.
bool moebind_speculative_process(struct moebind_speculative * spec, struct llama_batch batch);

// A sequence to draft for: the first n_kept of the tokens that were told, those that follow them, and the one that comes
// next; there is room for n_max in `drafted`.
struct moebind_draft {
    llama_seq_id        seq_id;
    size_t              n_kept;
    const llama_token * tokens;
    size_t              n_tokens;
    llama_token         last;
    int32_t             n_max;
    llama_token *       drafted;
    int32_t             n_drafted;
};
void moebind_speculative_draft(struct moebind_speculative * spec, struct moebind_draft * drafts, size_t n);

// So many tokens of the last draft of a sequence were right.
void moebind_speculative_accept(struct moebind_speculative * spec, llama_seq_id seq_id, int32_t n_accepted);

// Have contexts keep the hidden states that drafts of this type take, as llama-common does when it begins with them. For contexts
// that only count: their vocabularies are left out, and llama-common looks at these. The caller has seen that the draft's layers
// are there.
void moebind_speculative_states(int32_t type, struct llama_context * target, struct llama_context * draft);

// Let the contexts be as they were before something drafted from the target's hidden states; each may be NULL.
void moebind_speculative_leave(struct llama_context * target, struct llama_context * draft);

// The layers of the target that a draft model takes hidden states of. Writes at most n and returns how many there are.
size_t moebind_target_layers(const struct llama_model * draft, int32_t * layers, size_t n);

// The first token that is another one in both, of those that both have; -1 if none is.
int32_t moebind_vocab_difference(const struct llama_vocab * one, const struct llama_vocab * other);

#ifdef __cplusplus
}
#endif
