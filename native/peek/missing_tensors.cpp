// Graphs use tensors that a load calls optional: a router's experts, a bias, the layers of a model that has only those that
// predict further ahead. ggml reads a missing tensor's shape at address 0.
//
// llama.cpp builds its graphs with functions of ggml's shared library, which are resolved by name: those defined here come
// first, since the extension comes before the libraries that it is linked to. They refuse what is not there, and do what
// ggml's own do. This file is compiled with its symbols visible for that.
#include "ggml.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace {

template <class Function> Function * next(const char * name) {
    void * found = dlsym(RTLD_NEXT, name);
    if (found == nullptr) {
        throw std::runtime_error(std::string("ggml has no ") + name);
    }
    return reinterpret_cast<Function *>(found);
}

void require(const char * name, ggml_tensor * tensor) {
    if (tensor == nullptr) {
        throw std::runtime_error(std::string("the model lacks a tensor that its graph uses (in ") + name + ")");
    }
}
template <class Other> void require(const char *, Other) {}

// All tensors that the function takes have to be there.
template <class Function, class... Arguments>
ggml_tensor * checked(Function * function, const char * name, ggml_context * ctx, Arguments... arguments) {
    (require(name, arguments), ...);
    return function(ctx, arguments...);
}

}  // namespace

#define CHECKED(name, parameters, ...)                                \
    extern "C" ggml_tensor * name parameters {                        \
        static auto * const function = next<decltype(name)>(#name);   \
        return checked(function, #name, ctx, __VA_ARGS__);            \
    }

#define CHECKED_1(name) CHECKED(name, (ggml_context * ctx, ggml_tensor * a), a)
#define CHECKED_2(name) CHECKED(name, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * b), a, b)
#define CHECKED_3(name) CHECKED(name, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * b, ggml_tensor * c), a, b, c)

CHECKED_2(ggml_mul_mat)
CHECKED_3(ggml_mul_mat_id)
CHECKED_2(ggml_add)
CHECKED_3(ggml_add_id)
CHECKED_2(ggml_mul)
CHECKED_2(ggml_sub)
CHECKED_2(ggml_div)
CHECKED_2(ggml_get_rows)
CHECKED_2(ggml_repeat)
CHECKED_2(ggml_cpy)
CHECKED_2(ggml_ssm_conv)
CHECKED_1(ggml_cont)
CHECKED_1(ggml_transpose)
CHECKED_1(ggml_neg)
CHECKED_1(ggml_exp)
CHECKED_1(ggml_silu)
CHECKED_1(ggml_sigmoid)
CHECKED_1(ggml_tanh)
CHECKED_1(ggml_soft_max)
CHECKED(ggml_scale, (ggml_context * ctx, ggml_tensor * a, float s), a, s)
CHECKED(ggml_cast, (ggml_context * ctx, ggml_tensor * a, ggml_type type), a, type)
CHECKED(ggml_permute, (ggml_context * ctx, ggml_tensor * a, int axis0, int axis1, int axis2, int axis3), a, axis0, axis1, axis2, axis3)
CHECKED(ggml_concat, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * b, int dim), a, b, dim)
CHECKED(ggml_reshape_1d, (ggml_context * ctx, ggml_tensor * a, int64_t ne0), a, ne0)
CHECKED(ggml_reshape_2d, (ggml_context * ctx, ggml_tensor * a, int64_t ne0, int64_t ne1), a, ne0, ne1)
CHECKED(ggml_reshape_3d, (ggml_context * ctx, ggml_tensor * a, int64_t ne0, int64_t ne1, int64_t ne2), a, ne0, ne1, ne2)
CHECKED(ggml_reshape_4d, (ggml_context * ctx, ggml_tensor * a, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3), a, ne0, ne1, ne2, ne3)
CHECKED(ggml_view_1d, (ggml_context * ctx, ggml_tensor * a, int64_t ne0, size_t offset), a, ne0, offset)
CHECKED(ggml_view_2d, (ggml_context * ctx, ggml_tensor * a, int64_t ne0, int64_t ne1, size_t nb1, size_t offset), a, ne0, ne1, nb1, offset)
CHECKED(ggml_view_3d, (ggml_context * ctx, ggml_tensor * a, int64_t ne0, int64_t ne1, int64_t ne2, size_t nb1, size_t nb2, size_t offset), a, ne0, ne1, ne2, nb1, nb2, offset)
CHECKED(ggml_rms_norm, (ggml_context * ctx, ggml_tensor * a, float eps), a, eps)
CHECKED(ggml_norm, (ggml_context * ctx, ggml_tensor * a, float eps), a, eps)

// Of encoders of pictures and sound.
CHECKED(ggml_conv_1d, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * b, int s0, int p0, int d0), a, b, s0, p0, d0)
CHECKED(ggml_conv_1d_ph, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * b, int s, int d), a, b, s, d)
CHECKED(ggml_conv_1d_dw, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * b, int s0, int p0, int d0), a, b, s0, p0, d0)
CHECKED(ggml_conv_2d, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * b, int s0, int s1, int p0, int p1, int d0, int d1), a, b, s0, s1, p0, p1, d0, d1)
CHECKED(ggml_conv_2d_dw, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * b, int s0, int s1, int p0, int p1, int d0, int d1), a, b, s0, s1, p0, p1, d0, d1)
