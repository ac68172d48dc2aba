// A C way to grammars. Bound like shim.h, of which it is the part that only they need.
#pragma once

#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// --- grammars (sampling/grammar_*.cpp) ---

// Throws what is wrong with a grammar, with its place.
void moebind_grammar_check(const char * grammar, const char * root);

// Whether every text of a rule has a part that one of some rules describes; with `some`, whether a text may have one. They
// are those with one of the `names` in their own, if all that they describe holds the text that comes with that name.
bool moebind_grammar_passes(const char * grammar, const char * root, const char ** names, const char ** texts,
                            size_t n_names, bool some);

// Whether a text of the grammar may begin with this one.
bool moebind_grammar_takes(const char * grammar, const char * text);

// What the grammars of a vocabulary share: the texts of its tokens, sorted, and what was found out about the grammars that
// were used last.
struct moebind_grammars;
struct moebind_grammars * moebind_grammars_new(const struct llama_vocab * vocab);
void                      moebind_grammars_free(struct moebind_grammars * grammars);

// A sampler that lets only through what the grammar allows, and throws when nothing is left. It needs the vocabulary.
struct llama_sampler * moebind_sampler_grammar(struct moebind_grammars * grammars, const char * grammar,
                                               const char * root);

// Before its first use.
void moebind_grammar_begin(struct llama_sampler * grammar);

// The text begins with this, before the first token; throws when the grammar forbids it. Not of one that waits.
void moebind_grammar_written(struct llama_sampler * grammar, const char * text);

// Take these control tokens for their text, as in the replies of a chat template.
void moebind_grammar_show(struct llama_sampler * grammar, const llama_token * tokens, size_t n_tokens);

// Instead of moebind_grammar_begin: let everything through until a word, a pattern (std::regex) or a token comes. An invalid pattern
// throws.
void moebind_grammar_wait(struct llama_sampler * grammar, const char ** words, size_t n_words, const char ** patterns,
                          size_t n_patterns, const llama_token * tokens, size_t n_tokens);
bool moebind_grammar_waits(const struct llama_sampler * grammar);

// Whether accepting the token would succeed.
bool moebind_grammar_allows(const struct llama_sampler * grammar, llama_token token);

// The likeliest token that the grammar lets through; throws when there is none. LLAMA_TOKEN_NULL: it waits, and the likeliest
// would start it with a text that it forbids.
llama_token moebind_grammar_likeliest(const struct llama_sampler * grammar, const float * logits, int32_t n);

// What was done for all samplers of this grammar, which share it.
struct moebind_grammar_counts {
    uint64_t made;    // masks of the tokens that may come next
    uint64_t found;   // times that one was known
    uint64_t visited; // nodes of the trie of texts
    uint64_t bytes;   // that it keeps now
};
void moebind_grammar_counted(const struct llama_sampler * grammar, struct moebind_grammar_counts * counts);

#ifdef __cplusplus
}
#endif
