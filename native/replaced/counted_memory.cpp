// ggml's backends, with memory that can be counted without being there.
//
// Counting scratch memory (no_alloc, so every plan), ggml_backend_sched_reserve_size forgets first on which backend
// llama.cpp wanted a tensor (ggml_backend_sched_set_tensor_backend); allocating, ggml_backend_sched_reserve does not. Over
// several devices the count was off by a hidden state for each copy of the pipeline. Here both go the same way.
//
// A load reserves scratch memory for three graphs, and what one needs more than those before is added; the count is of the
// first alone, and the others are only split. While a thread counts, those that follow on the first are counted too.
//
// Also under no_alloc, llama.cpp allocates recurrent state, the state of DeepSeek-V4's compressors and the output buffer.
// While a thread counts, what it allocates has its type and size, but no memory.
//
// A graph that is split reads copies of weights where it reads them on another device. One that is only looked at is not split.
#define ggml_backend_sched_reserve_size ggml_backend_sched_reserve_size_forgetful
#define ggml_backend_sched_split_graph ggml_backend_sched_split_graph_only
#define ggml_backend_sched_free ggml_backend_sched_free_only
#define ggml_backend_buft_alloc_buffer ggml_backend_buft_alloc_buffer_for_real
#include "ggml-backend.cpp"
#undef ggml_backend_sched_reserve_size
#undef ggml_backend_sched_split_graph
#undef ggml_backend_sched_free
#undef ggml_backend_buft_alloc_buffer

#include "counted_memory.h"

#include <utility>

extern "C" {
GGML_API void ggml_backend_sched_reserve_size(ggml_backend_sched_t sched, ggml_cgraph * graph, size_t * sizes);
GGML_API void ggml_backend_sched_split_graph(ggml_backend_sched_t sched, ggml_cgraph * graph);
GGML_API void ggml_backend_sched_free(ggml_backend_sched_t sched);
GGML_API ggml_backend_buffer_t ggml_backend_buft_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size);
}

namespace {

struct counting {
    bool                 on;
    ggml_backend_sched_t sched;  // which counts, and where to
    size_t *             sizes;
};

thread_local counting current;
thread_local bool     unsplit;

void count(ggml_backend_sched_t sched, size_t * sizes) {
    ggml_gallocr_reserve_n_size(sched->galloc, &sched->graph, sched->node_backend_ids, sched->leaf_backend_ids, sizes);
}

}  // namespace

void ggml_backend_sched_reserve_size(ggml_backend_sched_t sched, ggml_cgraph * graph, size_t * sizes) {
    ggml_backend_sched_synchronize(sched);
    ggml_backend_sched_split_graph_only(sched, graph);
    count(sched, sizes);
    ggml_backend_sched_reset(sched);
    if (current.on) {
        current.sched = sched;
        current.sizes = sizes;
    }
}

void ggml_backend_sched_split_graph(ggml_backend_sched_t sched, ggml_cgraph * graph) {
    if (unsplit) {
        return;
    }
    ggml_backend_sched_split_graph_only(sched, graph);
    if (sched == current.sched) {
        std::vector<size_t> sizes(sched->n_backends);
        count(sched, sizes.data());
        for (int i = 0; i < sched->n_backends; i++) {
            current.sizes[i] = std::max(current.sizes[i], sizes[i]);
        }
    }
}

void ggml_backend_sched_free(ggml_backend_sched_t sched) {
    if (current.sched == sched) {
        current.sched = nullptr;  // another may get its address
    }
    ggml_backend_sched_free_only(sched);
}

bool moebind_count_only(bool on) {
    const bool before = current.on;
    current           = { on, nullptr, nullptr };
    return before;
}

bool moebind_leave_unsplit(bool on) { return std::exchange(unsplit, on); }

// Tensors get addresses from here on, at which nothing is: whoever looks there is noticed.
static void * nowhere(ggml_backend_buffer_t) { return reinterpret_cast<void *>(uintptr_t{ 1 } << 60); }

static ggml_backend_buffer_t without_memory(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_i iface = {};
    iface.get_base              = nowhere;
    iface.memset_tensor         = [](ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {};
    iface.set_tensor            = [](ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t) {};
    iface.get_tensor            = [](ggml_backend_buffer_t, const ggml_tensor *, void *, size_t, size_t) {};
    iface.clear                 = [](ggml_backend_buffer_t, uint8_t) {};
    return ggml_backend_buffer_init(buft, iface, nullptr, size);
}

ggml_backend_buffer_t ggml_backend_buft_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    // Of no bytes there is nothing to allocate anyway, and llama.cpp expects ggml's own.
    return current.on && size > 0 ? without_memory(buft, size) : ggml_backend_buft_alloc_buffer_for_real(buft, size);
}
