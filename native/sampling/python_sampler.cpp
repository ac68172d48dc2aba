// A Python function as a sampler (src/moebind/sampling/python.py), and what keeps another sampler from taking for ever.
//
// `object` is the Python object that `handle` is; the sampler has a reference to it. It refers weakly to what it is the handle
// of: only Python's own references keep the user's function, and the collector sees those. What the function raises is thrown
// here as well, so that nothing is chosen with half of the work done, and arrives at the call that the user made.
#include "callbacks.h"
#include "guard.h"
#include "shim.h"

#include <stdexcept>
#include <string>

namespace {

struct python_sampler {
    std::string name;
    PyObject *  object;
    void *      handle;
};

python_sampler & of(const llama_sampler * sampler) { return *static_cast<python_sampler *>(sampler->ctx); }

template <class Call> void in_python(const Call & call) {
    const moebind::python_call python;
    if (!python || !call() || moebind::exception_waiting()) {
        throw std::runtime_error("a sampler written in Python failed");
    }
}

const char * python_name(const llama_sampler * sampler) { return of(sampler).name.c_str(); }

void python_accept(llama_sampler * sampler, llama_token token) {
    in_python([&]() { return moebind_on_sampler_accept(token, of(sampler).handle); });
}

void python_apply(llama_sampler * sampler, llama_token_data_array * candidates) {
    in_python([&]() { return moebind_on_sampler_apply(candidates, of(sampler).handle); });
}

void python_reset(llama_sampler * sampler) {
    in_python([&]() { return moebind_on_sampler_reset(of(sampler).handle); });
}

llama_sampler * python_clone(const llama_sampler * sampler);

void python_free(llama_sampler * sampler) {
    moebind_unreference(of(sampler).object);
    delete &of(sampler);
}

llama_sampler_i python_interface = [] {
    llama_sampler_i functions = {};
    functions.name            = python_name;
    functions.accept          = python_accept;
    functions.apply           = python_apply;
    functions.reset           = python_reset;
    functions.clone           = python_clone;
    functions.free            = python_free;
    return functions;
}();

llama_sampler * python_clone(const llama_sampler * sampler) {
    uintptr_t object = 0;
    void *    handle = nullptr;
    in_python([&]() { return moebind_on_sampler_clone(of(sampler).handle, &object, &handle); });
    // It came with a reference, which is this sampler's now.
    return llama_sampler_init(&python_interface, new python_sampler{ of(sampler).name,
                                                                     reinterpret_cast<PyObject *>(object), handle });
}

// A sampler that refuses more candidates than it can compare.
struct bounded {
    llama_sampler * inner;
    size_t          most;
};

bounded & bounded_of(const llama_sampler * sampler) { return *static_cast<bounded *>(sampler->ctx); }

const char * bounded_name(const llama_sampler * sampler) { return llama_sampler_name(bounded_of(sampler).inner); }

void bounded_apply(llama_sampler * sampler, llama_token_data_array * candidates) {
    if (candidates->size > bounded_of(sampler).most) {
        throw std::runtime_error(std::to_string(candidates->size) + " candidates; it compares each with each, so put "
                                 "top_k(" + std::to_string(bounded_of(sampler).most) + ") or less before it");
    }
    llama_sampler_apply(bounded_of(sampler).inner, candidates);
}

llama_sampler * bounded_clone(const llama_sampler * sampler);

void bounded_free(llama_sampler * sampler) {
    llama_sampler_free(bounded_of(sampler).inner);
    delete &bounded_of(sampler);
}

llama_sampler_i bounded_interface = [] {
    llama_sampler_i functions = {};
    functions.name            = bounded_name;
    functions.apply           = bounded_apply;
    functions.clone           = bounded_clone;
    functions.free            = bounded_free;
    return functions;
}();

llama_sampler * bounded_clone(const llama_sampler * sampler) {
    return llama_sampler_init(&bounded_interface, new bounded{ llama_sampler_clone(bounded_of(sampler).inner),
                                                               bounded_of(sampler).most });
}

}  // namespace

llama_sampler * moebind_sampler_python(const char * name, uintptr_t object, void * handle) {
    moebind_reference(object);
    return llama_sampler_init(&python_interface,
                              new python_sampler{ name, reinterpret_cast<PyObject *>(object), handle });
}

llama_sampler * moebind_sampler_infill(const llama_vocab * vocab, size_t most) {
    return llama_sampler_init(&bounded_interface, new bounded{ llama_sampler_init_infill(vocab), most });
}
