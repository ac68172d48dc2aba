// What ggml-cuda includes from each part of a toolkit. CMake has nvcc make a library of it before it decides.
#include <cub/version.cuh>
#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_runtime.h>

__global__ void kernel(float * x) { *x = 1; }

extern "C" int check(float * x) {
    kernel<<<1, 1>>>(x);
    return CUDART_VERSION + CUBLAS_VERSION + CUB_VERSION;
}
