// Speculative decoding by llama-common: what drafts tokens for a context to verify (src/moebind/context/speculative.py).
#include "common.h"
#include "drafts.h"
#include "llama-ext.h"
#include "speculative.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

// Python has these names, and their numbers go from one to the other.
static_assert(COMMON_SPECULATIVE_TYPE_COUNT == 11);
static_assert(MOEBIND_SPECULATIVE_DRAFT_SIMPLE == int(COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE));
static_assert(MOEBIND_SPECULATIVE_DRAFT_EAGLE3 == int(COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3));
static_assert(MOEBIND_SPECULATIVE_DRAFT_MTP == int(COMMON_SPECULATIVE_TYPE_DRAFT_MTP));
static_assert(MOEBIND_SPECULATIVE_DRAFT_DFLASH == int(COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH));
static_assert(MOEBIND_SPECULATIVE_DRAFT_DSPARK == int(COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK));
static_assert(MOEBIND_SPECULATIVE_NGRAM_SIMPLE == int(COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE));
static_assert(MOEBIND_SPECULATIVE_NGRAM_MAP_K == int(COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K));
static_assert(MOEBIND_SPECULATIVE_NGRAM_MAP_K4V == int(COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K4V));
static_assert(MOEBIND_SPECULATIVE_NGRAM_MOD == int(COMMON_SPECULATIVE_TYPE_NGRAM_MOD));
static_assert(MOEBIND_SPECULATIVE_NGRAM_CACHE == int(COMMON_SPECULATIVE_TYPE_NGRAM_CACHE));

struct moebind_speculative {
    common_speculative_ptr    spec;
    common_batch              batch;   // what the target computed last
    std::vector<llama_tokens> tokens;  // of each sequence
    std::vector<llama_tokens> drafts;
    int32_t                   n_vocab;
};

namespace {

// llama-common has a set of numbers for each kind; a number that is not given is its own default.
common_params_speculative params_of(const moebind_speculative_params & given) {
    common_params_speculative params;
    params.types.clear();
    for (size_t i = 0; i < given.n_types; i++) {
        params.types.push_back(static_cast<common_speculative_type>(given.types[i]));
    }
    // Sampling in the draft's graph would attach samplers to a context of the user's.
    params.draft.backend_sampling = false;
    params.draft.ctx_tgt          = given.target;
    params.draft.ctx_dft          = given.draft;
    common_params_speculative_ngram_map * maps[] = { &params.ngram_simple, &params.ngram_map_k, &params.ngram_map_k4v };
    if (given.n_max > 0) {
        params.draft.n_max = params.ngram_mod.n_max = given.n_max;
        for (auto * map : maps) {
            map->size_m = given.n_max;
        }
        params.ngram_mod.n_min = std::min(params.ngram_mod.n_min, given.n_max);
    }
    if (given.n_min >= 0) {
        params.draft.n_min = params.ngram_mod.n_min = given.n_min;
    }
    if (given.p_min >= 0) {
        params.draft.p_min = given.p_min;
    }
    if (given.n_match > 0) {
        params.ngram_mod.n_match = given.n_match;
        for (auto * map : maps) {
            map->size_n = given.n_match;
        }
    }
    // It drops drafts that are shorter than what it looks for.
    params.ngram_simple.size_n = std::min(params.ngram_simple.size_n, params.ngram_simple.size_m);
    if (given.min_hits > 0) {
        for (auto * map : maps) {
            map->min_hits = given.min_hits;
        }
    }
    return params;
}

}  // namespace

moebind_speculative * moebind_speculative_new(const moebind_speculative_params * given) {
    auto params = params_of(*given);
    auto made   = std::make_unique<moebind_speculative>();
    made->spec.reset(common_speculative_init(params, given->n_seq));
    if (!made->spec) {
        throw std::runtime_error("nothing that drafts");
    }
    made->batch   = common_batch(given->target);
    made->n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(given->target)));
    made->tokens.resize(given->n_seq);
    made->drafts.resize(given->n_seq);
    return made.release();
}

void moebind_speculative_free(moebind_speculative * spec) { delete spec; }

int32_t moebind_speculative_n_max(const moebind_speculative * spec) { return common_speculative_n_max(spec->spec.get()); }

void moebind_speculative_begin(moebind_speculative * spec, llama_seq_id seq_id, const llama_token * tokens, size_t n) {
    spec->tokens[seq_id].assign(tokens, tokens + n);
    common_speculative_begin(spec->spec.get(), seq_id, spec->tokens[seq_id]);
}

bool moebind_speculative_process(moebind_speculative * spec, llama_batch batch) {
    spec->batch.clear();
    for (int32_t i = 0; i < batch.n_tokens; i++) {
        spec->batch.add(batch.token[i], batch.pos[i], batch.seq_id[i][0], batch.logits[i] != 0);
    }
    return common_speculative_process(spec->spec.get(), spec->batch);
}

void moebind_speculative_draft(moebind_speculative * spec, moebind_draft * drafts, size_t n) {
    auto * common = spec->spec.get();
    for (size_t seq = 0; seq < spec->drafts.size(); seq++) {
        common_speculative_get_draft_params(common, seq).drafting = false;
    }
    for (size_t i = 0; i < n; i++) {
        auto & draft  = drafts[i];
        auto & tokens = spec->tokens[draft.seq_id];
        auto & result = spec->drafts[draft.seq_id];
        tokens.resize(draft.n_kept);
        tokens.insert(tokens.end(), draft.tokens, draft.tokens + draft.n_tokens);
        result.clear();
        auto & params   = common_speculative_get_draft_params(common, draft.seq_id);
        params          = {};
        params.drafting = true;
        params.n_max    = draft.n_max;
        params.pos0     = tokens.size();
        params.id_last  = draft.last;
        params.prompt   = &tokens;
        params.result   = &result;
    }
    common_speculative_draft(common);
    for (size_t i = 0; i < n; i++) {
        auto &     draft  = drafts[i];
        const auto result = std::exchange(spec->drafts[draft.seq_id], {});
        // Vocabularies that llama-common takes for the same may differ in how many tokens they have.
        const auto end = std::find_if(result.begin(), result.begin() + std::min<size_t>(result.size(), draft.n_max),
                                      [&](llama_token token) { return token < 0 || token >= spec->n_vocab; });
        draft.n_drafted = std::copy(result.begin(), end, draft.drafted) - draft.drafted;
    }
}

void moebind_speculative_accept(moebind_speculative * spec, llama_seq_id seq_id, int32_t n_accepted) {
    common_speculative_accept(spec->spec.get(), seq_id, n_accepted);
}

void moebind_speculative_states(int32_t type, llama_context * target, llama_context * draft) {
    const auto kind = static_cast<common_speculative_type>(type);
    if (kind == COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE) {
        return;
    }
    const llama_model * model  = llama_get_model(draft);
    bool                masked = true;
    if (kind == COMMON_SPECULATIVE_TYPE_DRAFT_MTP) {
        llama_set_embeddings_nextn(target, true, false);
    } else {
        const int32_t n_layer = llama_model_n_layer(llama_get_model(target));
        for (size_t i = 0; i < llama_model_target_layer_ids_n(model); i++) {
            const int32_t layer = llama_model_target_layer_ids(model)[i];
            if (layer == n_layer) {
                llama_set_embeddings_nextn(target, true, false);
            } else {
                llama_set_embeddings_layer_inp(target, layer, true);
            }
        }
    }
    if (kind == COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH || kind == COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK) {
        char causal[8] = {};
        llama_model_meta_val_str(model, "dflash.attention.causal", causal, sizeof(causal));
        llama_set_causal_attn(draft, std::strcmp(causal, "true") == 0);
        masked = llama_model_dflash_selector_top_k(model) == 0;
    }
    llama_set_embeddings_nextn(draft, true, masked);
}

void moebind_speculative_leave(llama_context * target, llama_context * draft) {
    if (target != nullptr) {
        llama_set_embeddings_nextn(target, false, false);
        for (int32_t layer = 0; layer < llama_model_n_layer(llama_get_model(target)); layer++) {
            llama_set_embeddings_layer_inp(target, layer, false);
        }
    }
    if (draft != nullptr) {
        llama_set_embeddings_nextn(draft, false, false);
        llama_set_causal_attn(draft, true);
    }
}

size_t moebind_target_layers(const llama_model * draft, int32_t * layers, size_t n) {
    const size_t found = llama_model_target_layer_ids_n(draft);
    std::copy_n(llama_model_target_layer_ids(draft), std::min(found, n), layers);
    return found;
}

size_t moebind_speculative_types(char * buffer, size_t size) {
    const char * names  = common_speculative_all_types_str();
    const size_t length = std::strlen(names);
    std::copy_n(names, std::min(length, size), buffer);
    return length;
}

int32_t moebind_vocab_difference(const llama_vocab * one, const llama_vocab * other) {
    // llama-common does not compare the first few, which are special tokens.
    constexpr int32_t first = 5;
    const int32_t     n     = std::min(llama_vocab_n_tokens(one), llama_vocab_n_tokens(other));
    for (int32_t token = first; token < n; token++) {
        if (std::strcmp(llama_vocab_get_text(one, token), llama_vocab_get_text(other, token)) != 0) {
            return token;
        }
    }
    return -1;
}
