// What is freed when nobody holds it any more, and neither what was made from it.
//
// Python's garbage collector finalizes the objects of a cycle in any order, and what they refer to each other by is gone by
// then. llama.cpp's objects point to each other, and use that when they are freed. So who holds whom is kept here: each
// native object has a count of holders, and holds those that it points to. It knows no Python callbacks: Python's objects hold
// those, and so a cycle through a callback is still seen by the collector.
//
// A child of a fork leaves to its parent what was made there: it frees nothing of it.
#include "owned.h"

#include "guard.h"
#include "internal.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

// How many forks there were between the first process and this one. Set by the system's own hook: Python's come later, and
// objects may be collected in between.
int n_forks = 0;

std::atomic<size_t> n_alive{ 0 };

}  // namespace

struct moebind_owned {
    std::atomic<int>             holders{ 1 };
    const int                    made_after = n_forks;
    void *                       pointer    = nullptr;
    void (*free)(void *)                    = nullptr;
    std::vector<const void *>    addresses{};  // that it is found by
    std::vector<moebind_owned *> held{};
    std::recursive_mutex         adapters{};

    moebind_owned() { n_alive++; }
    ~moebind_owned() { n_alive--; }
};

namespace {

using by_address = std::unordered_map<const void *, moebind_owned *>;

// Read and written with fork_lock(). Never destroyed: objects are freed until the process ends.
by_address & all() {
    static auto & found = *new by_address;
    return found;
}

// Whoever asks holds it, so that it stays.
moebind_owned * find(const void * address) {
    const auto found = all().find(address);
    if (found == all().end()) {
        throw std::invalid_argument("nobody owns this pointer, or it shows a part of what somebody else owns");
    }
    return found->second;
}

void find_by(moebind_owned * owned, const void * address) {
    all()[address] = owned;
    owned->addresses.push_back(address);
}

void forget(const moebind_owned * owned, const void * address) {
    const auto found = all().find(address);
    if (found != all().end() && found->second == owned) {
        all().erase(found);
    }
}

// What is at this place, from now on at least.
moebind_owned * at(moebind_owned ** place) {
    if (*place == nullptr) {
        *place = new moebind_owned;
    }
    return *place;
}

void hold(moebind_owned * owned, moebind_owned * other) {
    owned->held.push_back(other);
    other->holders++;
}

// Not by recursion: a context can hold another one, which holds another one.
void release(moebind_owned * owned) {
    std::vector<moebind_owned *> released{ owned };
    while (!released.empty()) {
        owned = released.back();
        released.pop_back();
        if (--owned->holders > 0 || owned->made_after != n_forks) {
            continue;
        }
        {
            const auto lock = moebind::fork_lock();
            for (const void * address : owned->addresses) {
                forget(owned, address);
            }
        }
        if (owned->free != nullptr) {
            owned->free(owned->pointer);
        }
        released.insert(released.end(), owned->held.begin(), owned->held.end());
        delete owned;
    }
}

}  // namespace

void moebind::fill(moebind_owned ** place, void * pointer, void (*free)(void *)) {
    const auto lock  = fork_lock();
    auto *     owned = at(place);
    owned->pointer  = pointer;
    owned->free     = free;
    find_by(owned, pointer);
}

void moebind::take(void * pointer) {
    const auto lock  = fork_lock();
    auto *     owned = find(pointer);
    owned->free      = nullptr;
    forget(owned, pointer);
}

std::unique_lock<std::recursive_mutex> moebind::adapters_of(const llama_model * model) {
    moebind_owned * owned = nullptr;
    {
        const auto lock  = fork_lock();
        const auto found = all().find(model);
        owned            = found == all().end() ? nullptr : found->second;
    }
    return owned == nullptr ? std::unique_lock<std::recursive_mutex>() : std::unique_lock(owned->adapters);
}

void moebind::count_forks() {
    pthread_atfork(nullptr, nullptr, []() { n_forks++; });
}

void moebind_owned_release(moebind_owned ** owned) {
    if (*owned != nullptr) {
        release(*owned);
    }
}

void moebind_owned_holds(moebind_owned ** owned, const void * other) {
    const auto lock = moebind::fork_lock();
    hold(at(owned), find(other));
}

size_t moebind_owned_alive(void) { return n_alive; }

void moebind_found_by(const void * pointer, const void * part) {
    const auto lock = moebind::fork_lock();
    find_by(find(pointer), part);
}

void moebind_hold(const void * pointer, const void * other) {
    const auto lock = moebind::fork_lock();
    hold(find(pointer), find(other));
}

void moebind_let_go(const void * pointer, const void * other) {
    moebind_owned * held = nullptr;
    {
        const auto lock  = moebind::fork_lock();
        auto &     all   = find(pointer)->held;
        const auto found = std::find(all.begin(), all.end(), find(other));
        if (found == all.end()) {
            throw std::invalid_argument("this pointer does not hold that one");
        }
        held = *found;
        all.erase(found);
    }
    release(held);
}

void moebind_chain_add(llama_sampler * chain, llama_sampler * sampler) {
    const auto lock  = moebind::fork_lock();
    auto *     owner = find(chain);
    auto *     part  = find(sampler);
    if (part == owner || llama_sampler_chain_get(chain, -1) == nullptr) {
        throw std::invalid_argument("only a chain takes another sampler");
    }
    llama_sampler_chain_add(chain, sampler);
    // Whoever still has a pointer to the part holds the chain from now on, and the chain holds what the part needs.
    owner->held.insert(owner->held.end(), part->held.begin(), part->held.end());
    part->held.clear();
    hold(part, owner);
    for (const void * address : part->addresses) {
        forget(part, address);
    }
    part->addresses.clear();
    part->free = nullptr;
}

static void count_references(PyObject * object, bool more) {
    const moebind::python_call python;
    // While the interpreter ends, finalizers may still make something, and use it; but nothing has to be given back.
    if (!python || (!more && !Py_IsInitialized())) {
        return;
    }
    const PyGILState_STATE gil = PyGILState_Ensure();
    more ? Py_INCREF(object) : Py_DECREF(object);
    PyGILState_Release(gil);
}

void * moebind_reference(uintptr_t object) {
    count_references(reinterpret_cast<PyObject *>(object), true);
    return reinterpret_cast<void *>(object);
}

void moebind_unreference(void * object) { count_references(static_cast<PyObject *>(object), false); }
