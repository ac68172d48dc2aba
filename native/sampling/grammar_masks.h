// A grammar at work in a vocabulary: which tokens may come next. All samplers of one grammar share what was found out, in
// whatever threads they are.
#pragma once

#include "grammar_automaton.h"
#include "grammar_state.h"
#include "grammar_tokens.h"
#include "grammars.h"
#include "token_trie.h"

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace moebind {

// The tokens of a vocabulary, and, as soon as it is asked for, the trie of their texts.
class grammar_tokens {
  public:
    explicit grammar_tokens(const llama_vocab & vocab) : texts(read_tokens(vocab)) {}

    const token_texts texts;

    const token_trie & trie() const {
        std::call_once(asked, [this]() { made.emplace(texts); });
        return *made;
    }

  private:
    mutable std::once_flag            asked;
    mutable std::optional<token_trie> made;
};

// A bit for each token.
class token_mask {
  public:
    explicit token_mask(size_t n) : words((n + 63) / 64) {}

    bool has(llama_token token) const { return words[size_t(token) / 64] >> size_t(token) % 64 & 1; }
    void add(llama_token token) { words[size_t(token) / 64] |= uint64_t(1) << size_t(token) % 64; }
    size_t size() const { return words.size() * sizeof(words[0]); }

  private:
    std::vector<uint64_t> words;
};

class grammar_masks {
  public:
    grammar_masks(std::shared_ptr<const grammar_rules> rules, std::shared_ptr<const grammar_tokens> tokens);

    const std::vector<grammar_stack> & start() const { return rules->start; }
    const token_texts &                texts() const { return tokens->texts; }

    // As the function of this name.
    bool take(grammar_state & at, llama_token token, const std::string & piece);
    // Whether that would be taken.
    bool takes(const grammar_state & at, llama_token token, const std::string & piece);
    // Whether the text may end here.
    bool complete(const grammar_state & at);

    // The tokens that may come next; null, if that is not known yet and `only_known`.
    std::shared_ptr<const token_mask> mask(const grammar_state & at, bool only_known);

    moebind_grammar_counts counts() const;

  private:
    std::shared_ptr<const grammar_rules>  rules;
    std::shared_ptr<const grammar_tokens> tokens;

    mutable std::mutex                                              lock;  // for what follows
    std::unique_ptr<grammar_automaton>                              automaton;
    std::unordered_map<uint64_t, std::shared_ptr<const token_mask>> masks;  // by place and unfinished character
    moebind_grammar_counts                                          counted = {};

    template <class Use> auto use(const Use & what);
    void                      forget();
    size_t                    size() const;
    token_mask                find(grammar_automaton::place from, const std::string & unfinished);
    void                      walk(grammar_automaton::place from, const std::string & unfinished, token_mask & mask);
};

}  // namespace moebind

// The grammars of a vocabulary: its tokens, and the grammars that were used last.
struct moebind_grammars {
    explicit moebind_grammars(const llama_vocab & vocab);

    // Throws what is wrong with the grammar.
    std::shared_ptr<moebind::grammar_masks> read(const std::string & text, const std::string & root);

  private:
    struct entry {
        std::string                             text, root;
        std::shared_ptr<moebind::grammar_masks> grammar;
    };

    const llama_vocab &                            vocab;
    std::shared_ptr<const moebind::grammar_tokens> tokens;
    std::mutex                                     lock;
    std::vector<entry>                             recent;  // the last one used at the end
};
