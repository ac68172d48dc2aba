// What a cache of experts would have done: llama.cpp's own choice of what stays, without its memory.
#include "shim.h"

#include <algorithm>
#include <vector>

namespace {

// The experts of some layers, in the order of their use: llama.cpp's moe_cache_lru, step for step, as its counters are to be met.
class Lru {
  public:
    Lru(int32_t n_slots, size_t n_keys) : slot_of(n_keys, none), key_of(n_slots, none), prev(n_slots), next(n_slots) {
        for (int32_t slot = 0; slot < n_slots; slot++) {
            prev[slot] = slot - 1;
            next[slot] = slot + 1 < n_slots ? slot + 1 : none;
        }
        tail = n_slots - 1;
    }

    int32_t size() const { return int32_t(key_of.size()); }

    bool holds(int32_t key) const { return slot_of[key] != none; }

    void touch(int32_t key) { to_end(slot_of[key]); }

    // In place of what was not used for longest.
    void put(int32_t key) {
        const int32_t slot = head;
        if (key_of[slot] != none) {
            slot_of[key_of[slot]] = none;
        }
        key_of[slot] = key;
        slot_of[key] = slot;
        to_end(slot);
    }

  private:
    static constexpr int32_t none = -1;

    void to_end(int32_t slot) {
        if (slot == tail) {
            return;
        }
        (prev[slot] == none ? head : next[prev[slot]]) = next[slot];
        prev[next[slot]] = prev[slot];
        prev[slot]       = tail;
        next[slot]       = none;
        next[tail]       = slot;
        tail             = slot;
    }

    std::vector<int32_t> slot_of;
    std::vector<int32_t> key_of;
    std::vector<int32_t> prev, next;
    int32_t              head = 0, tail;
};

}  // namespace

void moebind_replay_expert_cache(const moebind_routed * routed, const int32_t * group_of, const int32_t * n_slots,
                                 int32_t n_groups, moebind_replayed * replayed) {
    const size_t     n_keys = size_t(routed->n_layer) * routed->n_expert;
    std::vector<Lru> caches;
    for (int32_t group = 0; group < n_groups; group++) {
        caches.emplace_back(n_slots[group], n_slots[group] == 0 ? 0 : n_keys);
    }
    std::vector<int32_t> chosen;
    std::vector<size_t>  seen(routed->n_expert, 0);  // the last step that an expert was in, from 1
    for (size_t step = 0; step < routed->n_steps; step++) {
        const int32_t layer = routed->layers[step];
        const int32_t group = group_of[layer];
        if (group < 0 || n_slots[group] == 0) {
            continue;
        }
        const int64_t begin = routed->begins[step], end = routed->begins[step + 1];
        // Large batches use most experts: llama.cpp lets them pass, and those that might use more than the cache holds.
        if (routed->n_tokens[step] > routed->n_tokens_max ||
            std::min<int64_t>(end - begin, routed->n_expert) > caches[group].size()) {
            continue;
        }
        chosen.clear();
        for (int64_t at = begin; at < end; at++) {
            const int32_t expert = routed->experts[at];
            if (seen[expert] != step + 1) {
                seen[expert] = step + 1;
                chosen.push_back(expert);
            }
        }
        Lru &         cache = caches[group];
        const int32_t first = layer * routed->n_expert;
        // What is there is used first, so that nothing that this step needs has to go for the rest.
        const auto missing = std::stable_partition(chosen.begin(), chosen.end(),
                                                   [&](int32_t expert) { return cache.holds(first + expert); });
        for (auto expert = chosen.begin(); expert != missing; ++expert) {
            cache.touch(first + *expert);
        }
        std::sort(missing, chosen.end());
        for (auto expert = missing; expert != chosen.end(); ++expert) {
            cache.put(first + *expert);
        }
        replayed[layer].hits   += missing - chosen.begin();
        replayed[layer].misses += chosen.end() - missing;
    }
}
