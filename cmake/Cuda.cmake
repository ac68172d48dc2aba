# Decides whether ggml-cuda is built (MOEBIND_CUDA=AUTO|ON|OFF) and says why in MOEBIND_CUDA_VERDICT.
# It takes four parts: nvcc, the runtime (cudart), its headers, and cuBLAS with headers. They come from
# a toolkit (CUDA_HOME, CUDAToolkit_ROOT, the one nvcc is in) or from pip's nvidia-* packages, which lie
# in site-packages/nvidia/cu13.
set(MOEBIND_CUDA_RPATH "")
set(GGML_CUDA OFF)
string(TOUPPER "${MOEBIND_CUDA}" MOEBIND_CUDA)
if(NOT MOEBIND_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "MOEBIND_CUDA is '${MOEBIND_CUDA}'; it takes AUTO, ON or OFF.")
endif()
if(MOEBIND_CUDA STREQUAL OFF)
  set(MOEBIND_CUDA_VERDICT "out: MOEBIND_CUDA=OFF")
  return()
endif()

execute_process(COMMAND ${Python_EXECUTABLE} -c
  "import sysconfig; print(sysconfig.get_path('purelib') + '/nvidia/cu13')"
  OUTPUT_VARIABLE pip_toolkit OUTPUT_STRIP_TRAILING_WHITESPACE)
set(roots $ENV{CUDA_HOME} $ENV{CUDA_PATH} ${CUDAToolkit_ROOT} ${pip_toolkit})
find_program(MOEBIND_NVCC nvcc HINTS ${CMAKE_CUDA_COMPILER} ${roots} PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(MOEBIND_NVCC)
  file(REAL_PATH "${MOEBIND_NVCC}" nvcc)
  cmake_path(GET nvcc PARENT_PATH nvcc_root)
  cmake_path(GET nvcc_root PARENT_PATH nvcc_root)
  list(APPEND roots ${nvcc_root})
endif()
set(where HINTS ${roots} PATH_SUFFIXES lib lib64 include targets/x86_64-linux/lib targets/x86_64-linux/include)
find_path(MOEBIND_CUDART_HEADER cuda_runtime.h ${where})
find_library(MOEBIND_CUDART NAMES cudart libcudart.so.13 libcudart.so.12 ${where})
find_path(MOEBIND_CUBLAS_HEADER cublas_v2.h ${where})
find_library(MOEBIND_CUBLAS NAMES cublas libcublas.so.13 libcublas.so.12 ${where})

set(missing "")
if(NOT MOEBIND_NVCC)
  list(APPEND missing "the compiler nvcc (package nvidia-cuda-nvcc)")
endif()
if(NOT MOEBIND_CUDART OR NOT MOEBIND_CUDART_HEADER)
  list(APPEND missing "the CUDA runtime and its headers (package nvidia-cuda-runtime)")
endif()
if(NOT MOEBIND_CUBLAS OR NOT MOEBIND_CUBLAS_HEADER)
  list(APPEND missing "cuBLAS and its headers (package nvidia-cublas)")
endif()

if(missing)
  list(JOIN missing "; " missing)
  set(MOEBIND_CUDA_VERDICT "out: not found: ${missing}")
  if(MOEBIND_CUDA STREQUAL ON)
    message(FATAL_ERROR "MOEBIND_CUDA=ON, but this was not found: ${missing}. Install it, point CUDA_HOME "
      "at a toolkit that has it, or set MOEBIND_CUDA=OFF.")
  endif()
  return()
endif()

set(GGML_CUDA ON)
# Without VMM the library needs no driver to load, so that `import moebind` works on every machine.
set(GGML_CUDA_NO_VMM ON)
set(GGML_CUDA_NCCL OFF)
set(CMAKE_CUDA_COMPILER "${MOEBIND_NVCC}")
cmake_path(GET MOEBIND_CUBLAS PARENT_PATH cublas_folder)
cmake_path(GET MOEBIND_CUDART PARENT_PATH cudart_folder)
# Found at run time where the build found them, or beside moebind where pip puts nvidia-* packages.
set(MOEBIND_CUDA_RPATH ":$ORIGIN/../../nvidia/cu13/lib:${cudart_folder}:${cublas_folder}")
set(MOEBIND_CUDA_VERDICT "in: ${MOEBIND_NVCC}, ${MOEBIND_CUDART}, ${MOEBIND_CUBLAS}")
