// A C way to what only C++ has, and to what must not wait for the interpreter. Bound like llama.cpp's own headers.
//
// One section for each file, in the order of the rooms: core, peek, sampling, chat.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ggml-backend.h"
#include "ggml.h"
#include "gguf.h"
#include "llama.h"
#include "mtmd.h"

#ifdef __cplusplus
extern "C" {
#endif

// --- failures (core/guard.cpp) ---

// Called once, at import: failed assertions throw from now on.
void moebind_setup(void);

// Called once, when the interpreter is about to end: threads that compute no longer call Python. Waits for those that do.
void moebind_end(void);

// Keep a Python exception (its id()) until the call that the user made returns, and raise it there.
// False when this thread is in no such call.
bool moebind_keep_exception(uintptr_t exception);

// --- what is freed when nobody holds it (core/owned.cpp) ---

// Something native, and everything that it holds. It is made by a function whose name begins with own_, which puts it where
// the first argument points to, and is freed with the last of its holders: of whoever has that place, who gives it back with
// moebind_owned_release, and of those that hold it in turn. The place is NULL at first.
struct moebind_owned;
void moebind_owned_release(struct moebind_owned ** owned);

// What is to be made holds another one, which is given by its pointer.
void moebind_owned_holds(struct moebind_owned ** owned, const void * other);

// How many there are, for tests.
size_t moebind_owned_alive(void);

// What is there already holds another one, or no longer; both are given by their pointers.
void moebind_hold(const void * pointer, const void * other);
void moebind_let_go(const void * pointer, const void * other);

// A part of what is owned, by which it is found as well: a model by its vocabulary.
void moebind_found_by(const void * pointer, const void * part);

// llama_sampler_chain_add: the chain owns the sampler from now on. Throws when somebody else does, another chain for one.
void moebind_chain_add(struct llama_sampler * chain, struct llama_sampler * sampler);

// Have a Python object (its id()) live longer by one reference. Not for what could refer to users' objects: the collector does not
// see it.
void * moebind_reference(uintptr_t object);
void   moebind_unreference(void * object);

// --- log (core/log.cpp) ---

// Send llama.cpp's log to moebind_on_log, whole lines of at least this level; NONE sends nothing.
void moebind_log_start(enum ggml_log_level level);

// The last lines that llama.cpp logged in this thread since moebind_log_forget, of any level but debug.
// Returns the length without the final NUL.
size_t moebind_log_recent(char * buffer, size_t size);
void   moebind_log_forget(void);

// Show nothing of what this thread logs, or show it again. Recent lines are kept all the same.
void moebind_log_quiet(bool quiet);

// Keep back errors that this thread logs until the release, which gives them their level: they are less if an exception quotes
// them.
void moebind_log_hold(void);
void moebind_log_release(enum ggml_log_level level);

// --- hooks: what stops a load or a decode (core/hooks.cpp) ---

struct moebind_hooks;

// Which of the Python callbacks are called; Ctrl-C and moebind_hooks_abort always work.
enum moebind_hook {
    MOEBIND_HOOK_PROGRESS = 1,
    MOEBIND_HOOK_ABORT    = 2,
    MOEBIND_HOOK_EVAL     = 4,
};

struct moebind_hooks * moebind_hooks_new(int python_callbacks, void * handle);
void                   moebind_hooks_free(struct moebind_hooks * hooks);
void                   moebind_hooks_into_model_params(struct moebind_hooks * hooks, struct llama_model_params * params);
void moebind_hooks_into_context_params(struct moebind_hooks * hooks, struct llama_context_params * params);
void moebind_hooks_into_mtmd_params(struct moebind_hooks * hooks, struct mtmd_context_params * params);

// Show the eval callback only tensors with one of these names, or, without names, those in whose name the std::regex is
// found. Nobody is asked then.
void moebind_hooks_observe(struct moebind_hooks * hooks, const char * pattern, const char ** names, size_t n_names);

// Ask the running (or else the next) computation to stop; any thread may. moebind_hooks_forget takes it back.
void moebind_hooks_abort(struct moebind_hooks * hooks);
void moebind_hooks_forget(struct moebind_hooks * hooks);
bool moebind_hooks_aborted(const struct moebind_hooks * hooks);

// Let computations of this thread also stop when these hooks are asked to, whichever context they are in; NULL: no longer. So
// one generation is stopped, and nobody's that comes later. The caller keeps the hooks meanwhile.
void moebind_hooks_of_thread(const struct moebind_hooks * hooks);

// Let a computation with these hooks also stop when others are asked to: those of the context that it is done for; NULL: no
// longer. The caller holds the others as long.
void moebind_hooks_follow(struct moebind_hooks * hooks, const struct moebind_hooks * others);

// --- fork (core/fork.cpp) ---

// Called in the thread that is about to fork: its child can compute then, with one thread or several.
void moebind_before_fork(void);
// Called in that thread after the fork, in the parent or in the child.
void moebind_after_fork(bool in_child);
// Called once, where forks wait for it: makes what llama.cpp would take its time for at its first use.
void moebind_make_tables(void);

// --- quantising (core/quantize.cpp) ---

// llama_model_quantize with progress, and Ctrl-C between two tensors: 0 done, 1 failed, 2 stopped.
int32_t moebind_quantize(const char * source, const char * target, const struct llama_model_quantize_params * params,
                         struct moebind_hooks * hooks);

// Of this thread's last one: each tensor's name and new type (empty when it keeps its type), each with its final NUL. Writes what fits and returns how many bytes they take.
size_t moebind_quantize_rows(char * buffer, size_t size);

// --- generation (core/generation.cpp) ---

// The token with the highest logit, the first of several; NaN is lower than all.
llama_token moebind_likeliest(const float * logits, int32_t n_vocab);
// A step of a generation that always takes the likeliest token: llama_decode of one, at pos, in a batch that has room for
// it, unless the context is told to stop (2); and the next token.
int32_t moebind_step(struct llama_context * ctx, struct moebind_hooks * hooks, struct llama_batch batch, llama_token token,
                     llama_pos pos, llama_token * next);

enum { MOEBIND_END_OF_GENERATION = -0x7fffffff };
// llama_token_to_piece, for a token that does not end the generation.
int32_t moebind_next_piece(const struct llama_vocab * vocab, llama_token token, bool special, char * buffer, int32_t size);

// --- loading models (core/loading.cpp) ---

// llama_model_load_from_file, or with `split` llama_model_load_from_splits, for files whose headers were read. They are taken
// from their owner, whatever comes of it: libllama has them, and frees them.
struct llama_model * moebind_model_load(const char ** paths, struct gguf_context ** headers, size_t n, bool split,
                                        struct llama_model_params params);

// How many headers this thread has that were handed over and not yet taken, for tests.
size_t moebind_headers_left(void);

// --- images and sound (core/media.cpp) ---

// A bitmap of a file's bytes, whose format the caller has recognised: what libmtmd knows no decoder for, it gives to ffmpeg.
// Sound needs an mtmd_context, for its sample rate; for images it may be NULL. NULL if it cannot be decoded.
mtmd_bitmap * moebind_bitmap_decode(const mtmd_context * ctx, const unsigned char * data, size_t size);

struct moebind_mtmd_memory {
    ggml_backend_dev_t device;
    size_t             size;
};

// What a projector would take of each device, weights and scratch memory, and the most tokens that it makes of an image (-1:
// no images). Writes at most n and returns how many there are; 0 if the file is no projector.
size_t moebind_mtmd_memory_of(const char * path, struct mtmd_context_params params, struct moebind_mtmd_memory * parts,
                              size_t n, int32_t * image_tokens_max);

// --- names of tensors (core/regex_search.cpp) ---

// Search each name with a std::regex, as llama.cpp does; returns how many match. An invalid pattern throws.
size_t moebind_regex_search(const char * pattern, const char ** names, size_t n_names, bool * matches);

// --- a cache of experts, forecast (core/expert_cache.cpp) ---

// Which experts were chosen, in order: in each step, those of a layer for some tokens.
struct moebind_routed {
    int32_t          n_layer, n_expert;
    int32_t          n_tokens_max; // steps of more tokens do not use the cache
    size_t           n_steps;
    const int32_t  * layers;       // of each step
    const int32_t  * n_tokens;     // of each step
    const int64_t  * begins;       // where each step's experts begin; n_steps + 1 of them
    const uint16_t * experts;
};

// What became of a layer: how many experts were there, and how many were not. Steps that do not use the cache count nothing.
struct moebind_replayed {
    int64_t hits, misses;
};

// What llama.cpp's cache of experts would have counted, layer by layer. Layers of one group share a cache of so many experts;
// a group of -1 has none.
void moebind_replay_expert_cache(const struct moebind_routed * routed, const int32_t * group_of, const int32_t * n_slots,
                                 int32_t n_groups, struct moebind_replayed * replayed);

// --- backends of graphics cards: "CUDA" or "Vulkan" (core/backend_verdicts.cpp) ---

// Whether it is in this build, with what or why not: one line that begins with "in" or "out".
const char * moebind_built(const char * backend);

// Why one that was built is not used, once the backends are listed; "" where there is nothing to tell.
const char * moebind_unused(const char * backend);

// --- RPC servers (core/rpc.cpp) ---

enum moebind_rpc_server {
    MOEBIND_RPC_SERVER_UNUSED = 0, // no connection now
    MOEBIND_RPC_SERVER_IN_USE = 1,
    MOEBIND_RPC_SERVER_LOST   = 2, // what it should have computed is zeros
};

// How the server is, by its "host:port", without asking it. Writes why it was lost, if it was.
int moebind_rpc_state(const char * endpoint, char * reason, size_t size);

// Forget that it was lost, so that it is connected to again; false while something still holds the lost connection.
bool moebind_rpc_forget(const char * endpoint);

// Ask a server anew for what the backend keeps about its devices: another one may listen there now.
void moebind_rpc_renew(const char * endpoint);

// How long it may take to answer a connection, and anything after that, in milliseconds.
void moebind_rpc_timeouts(const char * endpoint, int64_t connect_ms, int64_t silence_ms);

// Have the next server of this process (ggml_backend_rpc_start_server) write the port that it listens on, a line of text, into
// this file, and close it: with port 0 the system chooses one.
void moebind_rpc_report_port(int file);

// Take an RPC server's devices out of the registry: ggml_backend_unload does not, since they belong to the plain RPC
// backend. Nothing may use them any more.
void moebind_rpc_remove_server(ggml_backend_reg_t server);

// --- GGUF files (peek/gguf.cpp) ---

// gguf_init_from_file, without tensors, in less time. Throws when the metadata claims more than any model has: that function
// would allocate what a sparse file claims.
struct gguf_context * moebind_gguf_open(const char * path);

// Of a file that has the first bytes of one of `total` bytes: where the header of the whole one ends, if all of it is there;
// how many bytes it takes at least, which is more than are there, if not; 0 if it is damaged, and gguf_init_from_file says so.
uint64_t moebind_gguf_header_end(const char * path, uint64_t total);

// The texts of an array, each with its final NUL. Writes those that fit and returns how many bytes they take.
size_t moebind_gguf_strings(const struct gguf_context * file, int64_t key, char * buffer, size_t size);

// Index of the first text in an array that was there before; -1 when all differ. Empty ones do not count.
int64_t moebind_gguf_repeated(const struct gguf_context * file, int64_t key);

// --- devices that a child of a fork leaves to its parent (peek/backends.cpp) ---

// In the child of a fork: take a backend and its devices out of the lists, without a word to it. How many devices it had.
int moebind_leave_devices(const char * backend);

// --- devices that are only described (peek/described_devices.cpp) ---

// A GPU-type device that is only described. It has the name GPU<number>, is in no registry, and allocates nothing: for
// models with no_alloc. Asking again returns the same one, which stays for ever.
enum moebind_described { MOEBIND_DESCRIBED_CUDA = 0, MOEBIND_DESCRIBED_VULKAN = 1 };
ggml_backend_dev_t moebind_described_device(enum moebind_described kind, int32_t number, size_t memory);

// --- models (peek/model.cpp) ---

int32_t            moebind_model_n_expert(const struct llama_model * model);
int32_t            moebind_model_n_expert_used(const struct llama_model * model); // in the layer that uses the most
int32_t moebind_model_head_width(const struct llama_model * model); // of keys or values, in the layer with the widest
// The width of a head's keys in the first layer in which it is no multiple of this; 0 if it is one in all layers.
int32_t            moebind_model_odd_key(const struct llama_model * model, int32_t block);
int32_t moebind_model_n_embd_inp_enc(const struct llama_model * model); // of embeddings that its encoder takes
int32_t            moebind_model_n_devices(const struct llama_model * model);
ggml_backend_dev_t moebind_model_device(const struct llama_model * model, int32_t i);

struct moebind_tensor {
    const char *               name; // as long as the model
    size_t                     nbytes;
    ggml_backend_buffer_type_t buft; // NULL when nothing was allocated
};

// The model's tensors as they were placed. Writes at most n and returns how many there are.
size_t moebind_model_tensors(const struct llama_model * model, struct moebind_tensor * tensors, size_t n);

// The name of a tensor whose data cannot be read back, as the CPU's repacked layouts cannot; NULL when all can.
const char * moebind_model_unreadable(const struct llama_model * model);

struct moebind_weight {
    int64_t        ne[4];
    enum ggml_type type;
    bool           allocated;
};

// One of the model's tensors by name; false when there is none.
bool moebind_model_weight(const struct llama_model * model, const char * name, struct moebind_weight * weight);

// Whether each tensor is divided among the devices.
bool moebind_model_splits_tensors(const struct llama_model * model);

// Whether the matrix that makes logits is that of the token embeddings.
bool moebind_model_ties_output(const struct llama_model * model);

// How many positions the model's learned position embeddings have; 0 when it has none, and positions are unlimited.
int64_t moebind_model_n_pos(const struct llama_model * model);

// How many scores the model's classification head gives; 0 when it has no head.
int64_t moebind_model_n_scores(const struct llama_model * model);

// --- the cache of experts (peek/moe_cache.cpp) ---

// A layer with experts, as the cache sees it.
struct moebind_moe_layer {
    int32_t                    layer;
    int32_t                    device;    // of the model's devices, the GPU that computes it; -1 when none does
    int32_t                    group;     // layers of one group share their part of the cache; -1 when it is not cached
    int32_t                    n_expert;
    size_t                     nbytes;    // of all its experts
    ggml_backend_buffer_type_t elsewhere; // where experts are that are not in plain host memory; NULL when none are
};

// The model's layers with experts. Writes at most n and returns how many there are.
size_t moebind_moe_layers(const struct llama_model * model, struct moebind_moe_layer * layers, size_t n);

// Bytes that so many slots of such a layer's group take of its device.
size_t moebind_moe_slots_size(const struct llama_model * model, int32_t layer, int32_t n_slots);

// What a context's cache counted since it was made: experts that fit; those that were there when they were needed, and those
// that were not; the bytes that went to the device for these; and experts that large batches copied from it.
struct moebind_moe_counters {
    size_t n_slots, hits, misses, bytes, copied;
};

// False when the context has no cache. The caller holds the context.
bool moebind_moe_cache_counters(struct llama_context * ctx, struct moebind_moe_counters * counters);

// --- contexts (peek/context.cpp) ---

// Whether the graph that was computed last gave logits: those of encoders give embeddings only.
bool moebind_has_logits(struct llama_context * ctx);

// Take the buffer that logits and embeddings are in away from the context, which makes itself a new one: for arrays that
// still show the old one. The caller frees it.
ggml_backend_buffer_t moebind_take_output(struct llama_context * ctx);

struct moebind_memory {
    ggml_backend_buffer_type_t buft;
    size_t                     model;
    size_t                     context;
    size_t                     compute;
    size_t                     moe_cache; // not part of context
};

// Bytes by buffer type. Writes at most n and returns how many there are.
size_t moebind_memory_breakdown(const struct llama_context * ctx, struct moebind_memory * parts, size_t n);

// Build graphs and scratch memory for the adapters that the context has now, as its next computation would.
void moebind_reserve(struct llama_context * ctx);

// --- what a token reads (peek/reads.cpp) ---

// For each of the model's tensors, the bytes that the graph of one token reads of it: of experts those that are used, of what
// rows are looked up in these rows. For contexts that only count. Writes at most n and returns how many there are.
size_t moebind_token_reads(struct llama_context * ctx, struct moebind_tensor * reads, size_t n);

// --- adapters of a model, one thread at a time (peek/adapters.cpp) ---

// llama_init_from_model, llama_adapter_lora_init and llama_adapter_lora_free: the first reads the list of a model's adapters,
// as moebind_reserve does, the others change it.
struct llama_context *      moebind_context_new(struct llama_model * model, struct llama_context_params params);
// A context that tells what it would hold, and takes no memory. With no_alloc alone, llama.cpp allocates some kinds of state.
struct llama_context *      moebind_context_counted(struct llama_model * model, struct llama_context_params params);
struct llama_adapter_lora * moebind_adapter_load(struct llama_model * model, const char * path);
void                        moebind_adapter_free(struct llama_adapter_lora * adapter);

// --- saved states (peek/state.cpp) ---

// What the numbers in a cache depend on besides the model, its types, and what was decoded. Contexts in which this is
// equal can read each other's states.
struct moebind_state_layout {
    uint32_t n_stream;  // how many parts the cache has: one for each sequence, or one
    bool     v_trans;   // values are stored transposed: the context was made without flash attention
    bool     rope_long;
    int32_t  ctx_type;
    int32_t  rope_scaling_type;
    uint32_t n_ctx_orig_yarn;
    float    rope[6];
};

void moebind_state_layout_of(const struct llama_context * ctx, struct moebind_state_layout * layout);

// Free what llama_state_seq_get_data_ext left of a sequence on devices. It would use that memory again without looking
// whether it is large enough.
void moebind_state_forget_on_device(struct llama_context * ctx, int32_t seq_id);

// --- types that the quantiser gives (peek/quant_types.cpp) ---

struct moebind_quant_shape {
    const char * architecture;
    uint32_t     n_embd;
    uint32_t     n_ff;
    uint32_t     n_layer;
    uint32_t     n_head;
    uint32_t     n_head_kv;
    uint32_t     n_expert;
    uint32_t     n_embd_head_k;
    uint32_t     n_embd_head_v;
};

struct moebind_quant_tensor {
    const char *   name;
    int64_t        ne[4];
    enum ggml_type type; // before and after
};

// The types that llama.cpp's quantiser would give these tensors.
void moebind_quant_types(const struct moebind_quant_shape * shape, enum llama_ftype ftype,
                         struct moebind_quant_tensor * tensors, size_t n);

// --- what llama.cpp's own programs decide (peek/llama_common.cpp) ---

// How many threads llama.cpp's own programs compute with on this machine.
int32_t moebind_default_n_threads(void);

// The regular expression over tensor names that --cpu-moe uses.
const char * moebind_ffn_exps_regex(void);

// --- texts and their tokens (peek/tokenize.cpp) ---

// llama_tokenize, with as much stack as a pre-tokenizer's regular expressions need for this text (tokenize.cpp).
int32_t moebind_tokenize(const struct llama_vocab * vocab, const char * text, int32_t text_len, llama_token * tokens,
                         int32_t n_tokens_max, bool add_special, bool parse_special);

// The pieces of tokens, one after the other; returns as llama_detokenize. That one takes spaces away which the text
// had, as of "1 ." and "it 's", for byte-level BPE as for WordPiece, whose pieces always have spaces between them.
int32_t moebind_detokenize(const struct llama_vocab * vocab, const llama_token * tokens, int32_t n_tokens, char * text,
                           int32_t text_len_max, bool special);

// --- samplers of our own (sampling/python_sampler.cpp) ---

// A sampler that calls moebind_on_sampler_*. It has a reference to the object of the handle until it is freed.
struct llama_sampler * moebind_sampler_python(const char * name, uintptr_t object, void * handle);

// llama_sampler_init_infill, which takes time with the square of the candidates; more than `most` throw.
struct llama_sampler * moebind_sampler_infill(const struct llama_vocab * vocab, size_t most);

// --- JSON schemas (sampling/json_schema.cpp) ---

// The grammar of a JSON schema, by llama-common. Writes at most `size` bytes and returns how many there are.
size_t moebind_json_schema_to_grammar(const char * schema, char * buffer, size_t size);

// --- chat templates and replies (chat/chat.cpp) ---

// Text with its length. The caller frees it.
struct moebind_text;

const char * moebind_text_data(const struct moebind_text * text);
size_t       moebind_text_size(const struct moebind_text * text);
void         moebind_text_free(struct moebind_text * text);

struct moebind_chat_templates;

// A template ready to be rendered; without a source those of the model's file. What is wrong with it throws.
struct moebind_chat_templates * moebind_chat_templates_new(const struct llama_model * model, const char * source,
                                                           size_t size);
void                            moebind_chat_templates_free(struct moebind_chat_templates * templates);

// Reads the replies to a chat, once the chat was rendered with it.
struct moebind_chat_parser;

struct moebind_chat_parser * moebind_chat_parser_new(void);
void                         moebind_chat_parser_free(struct moebind_chat_parser * parser);

// Render messages, and parse a reply: JSON in, JSON out. src/moebind/chat/templates.py says what is in them.
struct moebind_text * moebind_chat_apply(const struct moebind_chat_templates * templates,
                                         struct moebind_chat_parser * parser, const char * request, size_t size);
struct moebind_text * moebind_chat_parse(const struct moebind_chat_parser * parser, const char * request, size_t size);

#ifdef __cplusplus
}
#endif
