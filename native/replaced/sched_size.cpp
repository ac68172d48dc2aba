// ggml's scheduler, with a count of scratch memory that is what it then allocates.
//
// Counting without allocating (no_alloc, so every plan), ggml_backend_sched_reserve_size forgets first on which backend
// llama.cpp wanted a tensor (ggml_backend_sched_set_tensor_backend); allocating, ggml_backend_sched_reserve does not. Over
// several devices the count was off by a hidden state for each copy of the pipeline. Here both go the same way.
#define ggml_backend_sched_reserve_size ggml_backend_sched_reserve_size_forgetful
#include "ggml-backend.cpp"
#undef ggml_backend_sched_reserve_size

extern "C" {
GGML_API void ggml_backend_sched_reserve_size(ggml_backend_sched_t sched, ggml_cgraph * graph, size_t * sizes);
}

void ggml_backend_sched_reserve_size(ggml_backend_sched_t sched, ggml_cgraph * graph, size_t * sizes) {
    ggml_backend_sched_synchronize(sched);
    ggml_backend_sched_split_graph(sched, graph);
    ggml_gallocr_reserve_n_size(sched->galloc, &sched->graph, sched->node_backend_ids, sched->leaf_backend_ids, sizes);
    ggml_backend_sched_reset(sched);
}
