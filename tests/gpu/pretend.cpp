// A backend that llama.cpp takes for CUDA (or for another: PRETEND), without a GPU: memory of its own, of which there is only so much, shared by all
// processes; pinned memory on the host; errors as ggml-cuda.cu has them, the last of which is kept until somebody asks; and
// no word to the child of a fork. The CPU computes.
#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

#ifndef PRETEND
#define PRETEND "CUDA"
#endif

namespace {

constexpr int out_of_memory = 2, initialization_error = 3;  // cudaError_t

const pid_t        owner = getpid();
thread_local int   last_error = 0;
int                broken = 0;  // an error that stays

// What each process holds, in memory that all of them share; what one held that has ended is free again.
struct holder {
    std::atomic<pid_t> process;
    std::atomic<long>  bytes;
};

constexpr int holders_max = 64;
holder *      holders = nullptr;
holder *      mine_of_them = nullptr;

bool lives(pid_t process) { return process != 0 && (kill(process, 0) == 0 || errno == EPERM); }

long held() {
    long sum = 0;
    for (int i = 0; i < holders_max; i++) {
        sum += lives(holders[i].process) ? holders[i].bytes.load() : 0;
    }
    return sum;
}

size_t capacity() { return std::strtoull(getenv("MOEBIND_PRETEND_BYTES"), nullptr, 10); }

// CUDA_CHECK
void check(int error) {
    if (error != 0) {
        ggml_log_internal(GGML_LOG_LEVEL_ERROR, "CUDA error: %d\n", error);
        ggml_abort("ggml-cuda.cu", 109, "CUDA error");
    }
}

int call() {
    const int error = getpid() != owner ? initialization_error : broken;
    return error == 0 ? 0 : last_error = error;
}

void checked_call() { check(call()); }

void * device_malloc(size_t size) {
    checked_call();
    if (held() + static_cast<long>(size) > static_cast<long>(capacity())) {
        last_error = out_of_memory;
        return nullptr;
    }
    mine_of_them->bytes += static_cast<long>(size);
    void * memory = nullptr;
    return posix_memalign(&memory, 128, size) == 0 ? memory : nullptr;
}

// In ggml-cuda.cu destructors do it, which cannot throw.
void device_free(void * memory, size_t size) noexcept {
    checked_call();
    mine_of_them->bytes -= static_cast<long>(size);
    std::free(memory);
}

extern ggml_backend_device device;

// --- memory of the device ---------------------------------------------------------------------------

const char * device_name(ggml_backend_dev_t) { return PRETEND "0"; }
const char * buffer_type_name(ggml_backend_buffer_type_t) { return PRETEND "0"; }
size_t       alignment(ggml_backend_buffer_type_t) { return 128; }

void free_buffer(ggml_backend_buffer_t buffer) { device_free(buffer->context, buffer->size); }
void * base(ggml_backend_buffer_t buffer) { return buffer->context; }
void fill(ggml_backend_buffer_t, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    std::memset(static_cast<char *>(tensor->data) + offset, value, size);
}
void set(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    checked_call();
    std::memcpy(static_cast<char *>(tensor->data) + offset, data, size);
}
void get(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    checked_call();
    std::memcpy(data, static_cast<const char *>(tensor->data) + offset, size);
}
void clear(ggml_backend_buffer_t buffer, uint8_t value) { std::memset(buffer->context, value, buffer->size); }

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    void * memory = device_malloc(size);
    if (memory == nullptr) {
        last_error = 0;
        ggml_log_internal(GGML_LOG_LEVEL_ERROR, "%s: allocating %.2f MiB on device 0: cudaMalloc failed: out of memory\n",
                          __func__, static_cast<double>(size) / 1024.0 / 1024.0);
        return nullptr;
    }
    ggml_backend_buffer_i iface = {};
    iface.free_buffer   = free_buffer;
    iface.get_base      = base;
    iface.memset_tensor = fill;
    iface.set_tensor    = set;
    iface.get_tensor    = get;
    iface.clear         = clear;
    return ggml_backend_buffer_init(type, iface, memory, size);
}

ggml_backend_buffer_type made_type(const char * (*name)(ggml_backend_buffer_type_t),
                                   ggml_backend_buffer_t (*alloc)(ggml_backend_buffer_type_t, size_t),
                                   bool (*is_host)(ggml_backend_buffer_type_t)) {
    ggml_backend_buffer_type type = {};
    type.iface.get_name      = name;
    type.iface.alloc_buffer  = alloc;
    type.iface.get_alignment = alignment;
    type.iface.is_host       = is_host;
    type.device              = &device;
    return type;
}

ggml_backend_buffer_type buffer_type = made_type(buffer_type_name, alloc_buffer, nullptr);

// --- pinned memory ----------------------------------------------------------------------------------

const char * host_name(ggml_backend_buffer_type_t) { return PRETEND "_Host"; }
bool         host_is_host(ggml_backend_buffer_type_t) { return true; }
void         host_free(ggml_backend_buffer_t buffer) { std::free(buffer->context); }

ggml_backend_buffer_t host_alloc(ggml_backend_buffer_type_t type, size_t size) {
    void * memory = nullptr;
    if (posix_memalign(&memory, 128, size) != 0) {
        return nullptr;
    }
    ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(memory, size);
    buffer->buft = type;
    buffer->iface.free_buffer = host_free;
    return buffer;
}

ggml_backend_buffer_type host_type = made_type(host_name, host_alloc, host_is_host);

// --- computing --------------------------------------------------------------------------------------

struct stream {
    ggml_backend_t cpu;
    void *         pool = nullptr;
    size_t         pool_size = 0;
};

const char * backend_name(ggml_backend_t) { return PRETEND "0"; }

void free_backend(ggml_backend_t backend) {
    auto * mine = static_cast<stream *>(backend->context);
    if (mine->pool != nullptr) {
        device_free(mine->pool, mine->pool_size);
    }
    ggml_backend_free(mine->cpu);
    delete mine;
    delete backend;
}

ggml_status compute(ggml_backend_t backend, ggml_cgraph * graph) {
    auto * mine = static_cast<stream *>(backend->context);
    checked_call();
    size_t needed = 0;  // rounded activations of the largest multiplication
    for (int i = 0; i < graph->n_nodes; i++) {
        if (graph->nodes[i]->op == GGML_OP_MUL_MAT) {
            needed = std::max<size_t>(needed, ggml_nelements(graph->nodes[i]->src[1]) * 36 / 32);
        }
    }
    if (needed > mine->pool_size) {
        void * larger = device_malloc(needed);
        check(larger == nullptr ? out_of_memory : 0);  // and last_error stays
        if (mine->pool != nullptr) {
            device_free(mine->pool, mine->pool_size);
        }
        mine->pool = larger;
        mine->pool_size = needed;
    }
    const ggml_status status = ggml_backend_graph_compute(mine->cpu, graph);
    const int error = last_error;  // cudaGetLastError() after each operation
    last_error = 0;
    check(error);
    return status;
}

ggml_guid guid = { 'p', 'r', 'e', 't', 'e', 'n', 'd' };

// --- the device -------------------------------------------------------------------------------------

const char * description(ggml_backend_dev_t) { return "NVIDIA Pretend"; }

void memory(ggml_backend_dev_t, size_t * free, size_t * total) {
    checked_call();
    *total = capacity();
    *free  = capacity() - static_cast<size_t>(held());
}

enum ggml_backend_dev_type kind(ggml_backend_dev_t) {
    checked_call();
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

void properties(ggml_backend_dev_t dev, ggml_backend_dev_props * found) {
    *found = {};
    found->name        = device_name(dev);
    found->description = description(dev);
    found->type        = kind(dev);
    found->device_id   = getenv("MOEBIND_PRETEND_CARD_" PRETEND);  // null: it does not tell
    memory(dev, &found->memory_free, &found->memory_total);
    found->caps.host_buffer  = true;
    found->caps.mmap_support = true;
}

ggml_backend_dev_t cpu() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

ggml_backend_t init_backend(ggml_backend_dev_t dev, const char *) {
    checked_call();
    auto * mine = new stream{ ggml_backend_dev_init(cpu(), nullptr) };
    auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu()), "ggml_backend_set_n_threads"));
    set_threads(mine->cpu, 1);
    ggml_backend_i iface = {};
    iface.get_name      = backend_name;
    iface.free          = free_backend;
    iface.graph_compute = compute;
    return new ggml_backend{ &guid, iface, dev, mine };
}

ggml_backend_buffer_type_t device_memory(ggml_backend_dev_t) { return &buffer_type; }
ggml_backend_buffer_type_t pinned_memory(ggml_backend_dev_t) { return &host_type; }
bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) { return ggml_backend_dev_supports_op(cpu(), op); }
bool supports_type(ggml_backend_dev_t, ggml_backend_buffer_type_t buft) { return buft == &buffer_type; }
bool offload(ggml_backend_dev_t, const ggml_tensor * op) {
    const bool many = op->op == GGML_OP_MUL_MAT ? op->ne[1] >= 32 : op->op == GGML_OP_MUL_MAT_ID && op->ne[2] >= 32;
    return many;
}

const char * registry_name(ggml_backend_reg_t) { return PRETEND; }
size_t device_count(ggml_backend_reg_t) { return 1; }
ggml_backend_dev_t device_at(ggml_backend_reg_t, size_t) { return &device; }
void * address(ggml_backend_reg_t, const char * what) {
    if (std::strcmp(what, "break") == 0) {
        broken = 700;  // cudaErrorIllegalAddress
    }
    return nullptr;
}

ggml_backend_reg registry = { GGML_BACKEND_API_VERSION, { registry_name, device_count, device_at, address }, nullptr };

ggml_backend_device device = {
    { device_name, description, memory, kind, properties, init_backend, device_memory, pinned_memory, nullptr, supports_op,
      supports_type, offload, nullptr, nullptr, nullptr },
    &registry,
    nullptr,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) int cudaGetLastError(void) {
    const int error = broken != 0 ? broken : last_error;
    last_error = 0;
    return error;
}

extern "C" __attribute__((visibility("default"))) int cudaDeviceSynchronize(void) { return call(); }

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
    const int file = open(getenv("MOEBIND_PRETEND_FILE"), O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, holders_max * sizeof(holder)) != 0) {
        return nullptr;
    }
    holders = static_cast<holder *>(mmap(nullptr, holders_max * sizeof(holder), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    close(file);
    for (int i = 0; i < holders_max && mine_of_them == nullptr; i++) {
        pid_t before = holders[i].process;
        if (!lives(before) && holders[i].process.compare_exchange_strong(before, owner)) {
            mine_of_them = &holders[i];
            mine_of_them->bytes = 0;
        }
    }
    return mine_of_them == nullptr ? nullptr : &registry;
}
