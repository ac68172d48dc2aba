"""The order of experts: kept as it came, and replayed by the rule of llama.cpp's cache."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moebind.placement.chosen_experts import N_TOKENS_MAX, ChosenExperts, Groups, Layout, replay

N_LAYER, N_EXPERT = 4, 6

steps = st.lists(
    st.tuples(
        st.integers(0, N_LAYER - 1),
        st.sampled_from([1, 1, 1, 2, 3, N_TOKENS_MAX, N_TOKENS_MAX + 1]),
        st.integers(1, 3),
        st.integers(0, 2**32 - 1),
    ),
    max_size=60,
)


def chosen_of(described: list[tuple[int, int, int, int]]) -> tuple[ChosenExperts, list[tuple[int, np.ndarray]]]:
    """What is recorded, and the same as a list."""
    chosen, listed = ChosenExperts(), []
    for layer, n_tokens, n_used, seed in described:
        rng = np.random.default_rng(seed)
        experts = np.stack([rng.permutation(N_EXPERT)[:n_used] for _ in range(n_tokens)]).astype(np.int32)
        chosen.add(layer, experts)
        listed.append((layer, experts))
    return chosen, listed


def simulated(listed: list[tuple[int, np.ndarray]], groups: list[int], n_slots: list[int]) -> np.ndarray:
    """The same rule in plain Python: hits are used first, then misses in the order of their numbers."""
    counts = np.zeros((N_LAYER, 2), np.int64)
    caches: list[OrderedDict[tuple[int, int], None]] = [OrderedDict() for _ in n_slots]
    for layer, experts in listed:
        if groups[layer] < 0 or n_slots[groups[layer]] == 0 or len(experts) > N_TOKENS_MAX:
            continue
        cache, room = caches[groups[layer]], n_slots[groups[layer]]
        if min(experts.size, N_EXPERT) > room:
            continue
        wanted = list(dict.fromkeys(experts.reshape(-1).tolist()))
        hits = [expert for expert in wanted if (layer, expert) in cache]
        for expert in hits:
            cache.move_to_end((layer, expert))
        for expert in sorted(set(wanted) - set(hits)):
            if len(cache) == room:
                cache.popitem(last=False)
            cache[layer, expert] = None
        counts[layer] += len(hits), len(wanted) - len(hits)
    return counts


@given(steps, st.lists(st.integers(-1, 1), min_size=N_LAYER, max_size=N_LAYER), st.integers(0, 14), st.integers(0, 14))
def test_the_rule(described: list[tuple[int, int, int, int]], groups: list[int], first: int, second: int) -> None:
    chosen, listed = chosen_of(described)
    found = replay(chosen, N_LAYER, N_EXPERT, groups, [first, second])
    np.testing.assert_array_equal(found, simulated(listed, groups, [first, second]))


@given(steps, steps)
def test_what_comes_out_is_what_went_in(
    first: list[tuple[int, int, int, int]], second: list[tuple[int, int, int, int]]
) -> None:
    chosen, listed = chosen_of(first)
    kept = chosen.copy()
    more, others = chosen_of(second)
    chosen.extend(more)
    assert len(kept) == len(listed)
    layers, n_tokens, begins, experts = chosen.steps()
    for at, (layer, tokens) in enumerate(listed + others):
        assert (layers[at], n_tokens[at]) == (layer, len(tokens))
        np.testing.assert_array_equal(experts[begins[at] : begins[at + 1]], tokens.reshape(-1))
    assert begins[-1] == len(experts)


layouts = st.builds(
    lambda sizes, n_expert: Layout(tuple((0, size, 1, n_expert) for size in sizes), tuple(sizes), n_expert),
    st.lists(st.sampled_from([1, 100, 128, 5000, 552960]), min_size=1, max_size=3),
    st.just(N_EXPERT),
)


@given(
    st.dictionaries(st.integers(0, 9), layouts, min_size=1),
    st.integers(1, 40_000_000),
    st.integers(1, 3),
    st.sampled_from([1, 32, 128]),
)
def test_how_many_a_size_holds(layouts: dict[int, Layout], size: int, used: int, alignment: int) -> None:
    """As llama.cpp finds it: one more, as long as it fits the group's share."""
    groups = Groups(layouts, alignment)
    total = sum(N_EXPERT * layout.expert_bytes for layout in layouts.values())
    for kind, members, found in zip(groups.kinds, groups.members, groups.n_slots(size, used), strict=True):
        budget = int(float(size) * (len(members) * N_EXPERT * kind.expert_bytes) / total)
        count = 0
        while count < len(members) * N_EXPERT and kind.cache_bytes(count + 1, alignment) <= budget:
            count += 1
        assert found == (count if count >= used else 0)


@given(st.dictionaries(st.integers(0, 9), layouts, min_size=1), st.integers(1, 3))
def test_sizes_that_hold_something(layouts: dict[int, Layout], used: int) -> None:
    groups = Groups(layouts)
    assert all(groups.n_slots(groups.least_bytes(used), used))
    full = groups.full_bytes()
    assert sum(groups.n_slots(full, used)) == len(layouts) * N_EXPERT
    token = groups.token_bytes(dict.fromkeys(layouts, used))
    for members, count in zip(groups.members, groups.n_slots(token, used), strict=True):
        assert count >= used * len(members)
