// What saved states need to know of a context: how its cache is laid out, so that a state of another one is refused, and
// what llama.cpp left of sequences on devices.
#include "llama-context.h"
#include "llama-model.h"
#include "shim.h"

#include <algorithm>
#include <iterator>

namespace {

// llama_context keeps what ON_DEVICE states left on devices private; see context.cpp.
template <auto Member> struct storage_access {
    friend auto & storage_of(llama_context & ctx) { return ctx.*Member; }
};
auto & storage_of(llama_context & ctx);
template struct storage_access<&llama_context::mem_storage>;

}  // namespace

void moebind_state_layout_of(const llama_context * ctx, moebind_state_layout * layout) {
    const llama_cparams & cparams = ctx->get_cparams();
    const llama_model &   model   = ctx->get_model();
    *layout                       = {};
    layout->n_stream              = cparams.kv_unified ? 1 : cparams.n_seq_max;
    layout->v_trans               = !cparams.flash_attn;
    layout->ctx_type              = cparams.ctx_type;
    layout->rope_scaling_type     = cparams.rope_scaling_type;
    layout->n_ctx_orig_yarn       = cparams.n_ctx_orig_yarn;
    // Keys are cached with their positions rotated in, and some models rotate otherwise in a longer context.
    layout->rope_long = !model.layers.empty() && model.layers[0].rope_long != nullptr &&
                        cparams.n_ctx_seq > cparams.n_ctx_orig_yarn;
    const float rope[] = {
        cparams.rope_freq_base,   cparams.rope_freq_scale, cparams.yarn_ext_factor,
        cparams.yarn_attn_factor, cparams.yarn_beta_fast,  cparams.yarn_beta_slow,
    };
    static_assert(sizeof(rope) == sizeof(layout->rope));
    std::copy(std::begin(rope), std::end(rope), layout->rope);
}

void moebind_state_forget_on_device(llama_context * ctx, int32_t seq_id) {
    ctx->synchronize();
    storage_of(*ctx).erase(seq_id);
}
