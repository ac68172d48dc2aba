#include "token_trie.h"

#include "grammar_steps.h"

#include <algorithm>

namespace moebind {

namespace {

// A subtree of fewer nodes is walked as quickly as its slice is looked at.
constexpr uint32_t sliced_min = 16;

// Fills in the slices, from the end: a subtree's nodes come behind it.
void slice_up(token_trie & trie) {
    // Of each node: the character that ends with it, and whether there is one; a text may also be cut off there.
    enum : uint8_t { whole, cut, broken };
    std::vector<uint8_t>  kinds(trie.size(), whole);
    std::vector<uint32_t> codes(trie.size());
    std::vector<uint32_t> path(trie.deepest + 1);  // the node at each depth
    for (uint32_t node = 1; node < trie.size(); node++) {
        const uint32_t depth = trie.depths[node];
        path[depth]          = node;
        char           bytes[4];
        uint32_t       start = depth;  // where the character begins
        while (start > 1 && depth - start < 3 && kinds[path[start - 1]] == cut) {
            start--;
        }
        const uint32_t size = depth - start + 1;
        for (uint32_t i = 0; i < size; i++) {
            bytes[i] = char(trie.bytes[path[start + i]]);
        }
        const character read = read_character(bytes, bytes + size);
        const bool      lost = kinds[path[start - 1]] != whole;
        kinds[node]          = lost || read.kind == character::invalid ? broken : read.kind == character::whole ? whole : cut;
        codes[node]          = read.low;
    }
    std::vector<token_trie::slice> below(trie.size());
    std::vector<uint32_t>          parents(trie.size());
    for (uint32_t node = 1; node < trie.size(); node++) {
        path[trie.depths[node]] = node;
        parents[node]           = path[trie.depths[node] - 1];
    }
    for (uint32_t node = trie.size() - 1; node > 0; node--) {
        token_trie::slice &       above = below[parents[node]];
        const token_trie::slice & here  = below[node];
        above.ascii[0] |= here.ascii[0];
        above.ascii[1] |= here.ascii[1];
        above.others |= here.others || kinds[node] == cut;
        above.clean &= here.clean && kinds[node] != broken;
        // A character counts where it ends, and one that is cut off where it begins.
        const bool counts = kinds[node] == whole || here.longest == 0;
        above.longest     = std::max(above.longest, here.longest + counts);
        if (kinds[node] == whole && codes[node] < 128) {
            above.ascii[codes[node] / 64] |= uint64_t(1) << codes[node] % 64;
        } else {
            above.others = true;
        }
    }
    trie.slices.emplace_back();
    trie.sliced.resize(trie.size());
    for (uint32_t node = 1; node < trie.size(); node++) {
        if (trie.ends[node] - node >= sliced_min && kinds[node] == whole) {
            trie.sliced[node] = uint32_t(trie.slices.size());
            trie.slices.push_back(below[node]);
        }
    }
}

}  // namespace

token_trie::token_trie(const token_texts & texts) {
    for (size_t id = 0; id < texts.size(); id++) {
        if (texts[id].kind == token_text::text) {
            tokens.push_back(llama_token(id));
        }
    }
    std::stable_sort(tokens.begin(), tokens.end(),
                     [&](llama_token one, llama_token other) { return *texts[one].piece < *texts[other].piece; });
    bytes.push_back(0);
    depths.push_back(0);
    ends.push_back(0);
    first.push_back(0);
    std::vector<uint32_t> path{ 0 };  // the nodes from the root to the last one
    const auto            close = [&](size_t depth) {
        for (; path.size() > depth + 1; path.pop_back()) {
            ends[path.back()] = size();
        }
    };
    const std::string none;
    const std::string * last = &none;
    for (uint32_t i = 0; i < tokens.size(); i++) {
        const std::string & piece = *texts[tokens[i]].piece;
        size_t              same  = 0;
        while (same < std::min(piece.size(), last->size()) && piece[same] == (*last)[same]) {
            same++;
        }
        close(same);
        for (size_t at = same; at < piece.size(); at++) {
            path.push_back(size());
            bytes.push_back(uint8_t(piece[at]));
            depths.push_back(uint32_t(at + 1));
            ends.push_back(0);
            first.push_back(i);
        }
        deepest = std::max(deepest, uint32_t(piece.size()));
        last    = &piece;
    }
    close(0);
    ends[0] = size();
    first.push_back(uint32_t(tokens.size()));
    slice_up(*this);
}

}  // namespace moebind
