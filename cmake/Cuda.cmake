# Decides whether ggml-cuda is built (MOEBIND_CUDA=AUTO|ON|OFF|PIP) and says why in MOEBIND_CUDA_VERDICT.
# A toolkit has five parts: nvcc, the runtime (cudart), its headers, those of CCCL, and cuBLAS with headers. Each is
# looked for where nvcc is first, then in CUDA_HOME, CUDA_PATH and CUDAToolkit_ROOT, in pip's nvidia-* packages
# (site-packages/nvidia/cu13) and in /usr/local/cuda; so a system's nvcc can be completed with pip's cuBLAS.
# CudaBackend.cmake tells how it is built.
set(MOEBIND_CUDA_OLDEST 12.0)
set(GGML_CUDA OFF)
set(MOEBIND_CUDA_RPATH "")
string(TOUPPER "${MOEBIND_CUDA}" MOEBIND_CUDA)
if(NOT MOEBIND_CUDA MATCHES "^(AUTO|ON|OFF|PIP)$")
  message(FATAL_ERROR "MOEBIND_CUDA is '${MOEBIND_CUDA}'; it takes AUTO, ON, OFF or PIP.")
endif()
if(MOEBIND_CUDA STREQUAL OFF)
  set(MOEBIND_CUDA_VERDICT "out: MOEBIND_CUDA=OFF")
  return()
endif()

# Something is in the way: fatal if CUDA was asked for, otherwise the end of this file.
macro(moebind_no_cuda why what_to_do)
  set(MOEBIND_CUDA_VERDICT "out: ${why}")
  if(NOT MOEBIND_CUDA STREQUAL AUTO)
    message(FATAL_ERROR "MOEBIND_CUDA=${MOEBIND_CUDA}, but ${why}. ${what_to_do}, or set MOEBIND_CUDA=OFF.")
  endif()
  return()
endmacro()

execute_process(COMMAND ${Python_EXECUTABLE} "${CMAKE_CURRENT_LIST_DIR}/cuda_probe.py"
  OUTPUT_VARIABLE probed COMMAND_ERROR_IS_FATAL ANY)
string(REGEX REPLACE "\n.*" "" pip_toolkits "${probed}")
string(REGEX REPLACE "^[^\n]*\n([^\n]*).*" "\\1" capabilities "${probed}")

# --- where the parts are ---------------------------------------------------------------------------
set(roots $ENV{CUDA_HOME} $ENV{CUDA_PATH} ${CUDAToolkit_ROOT} ${pip_toolkits})
set(elsewhere PATHS /usr/local/cuda)
if(MOEBIND_CUDA STREQUAL PIP)
  set(roots ${pip_toolkits})
  set(elsewhere NO_DEFAULT_PATH)
endif()
find_program(MOEBIND_NVCC nvcc NO_CACHE HINTS ${roots} ${elsewhere} PATH_SUFFIXES bin)
if(NOT MOEBIND_CUDA STREQUAL PIP)
  foreach(told IN ITEMS "$ENV{CUDACXX}" "${CMAKE_CUDA_COMPILER}")
    if(EXISTS "${told}")
      set(MOEBIND_NVCC "${told}")
    endif()
  endforeach()
endif()
set(nvcc_version "")
set(nvcc_root "")
if(MOEBIND_NVCC)
  # It may be a script or a link elsewhere; it knows where it is itself.
  execute_process(COMMAND ${MOEBIND_NVCC} -v moebind_asks_where OUTPUT_VARIABLE said ERROR_VARIABLE said RESULT_VARIABLE failed)
  if(said MATCHES "#\\$ TOP=([^\r\n]*)")
    file(REAL_PATH "${CMAKE_MATCH_1}" nvcc_root)
  else()
    file(REAL_PATH "${MOEBIND_NVCC}/../.." nvcc_root)
  endif()
  execute_process(COMMAND ${MOEBIND_NVCC} --version OUTPUT_VARIABLE said ERROR_QUIET RESULT_VARIABLE failed)
  if(said MATCHES "release ([0-9]+\\.[0-9]+)")
    set(nvcc_version "${CMAKE_MATCH_1}")
  endif()
endif()
list(PREPEND roots ${nvcc_root})
set(where NO_CACHE HINTS ${roots} ${elsewhere}
  PATH_SUFFIXES lib64 lib include include/cccl targets/x86_64-linux/lib targets/x86_64-linux/include targets/sbsa-linux/lib)
find_path(MOEBIND_CUDART_HEADER cuda_runtime.h ${where})
find_library(MOEBIND_CUDART NAMES cudart libcudart.so.13 libcudart.so.12 ${where})
find_path(MOEBIND_CCCL_HEADER cub/cub.cuh ${where})
find_path(MOEBIND_CUBLAS_HEADER cublas_v2.h ${where})
find_library(MOEBIND_CUBLAS NAMES cublas libcublas.so.13 libcublas.so.12 ${where})
find_library(MOEBIND_CUBLASLT NAMES cublasLt libcublasLt.so.13 libcublasLt.so.12 ${where})

set(missing "")
foreach(part IN ITEMS
    "MOEBIND_NVCC|the compiler nvcc (package nvidia-cuda-nvcc)"
    "MOEBIND_CUDART|the CUDA runtime (package nvidia-cuda-runtime)"
    "MOEBIND_CUDART_HEADER|the headers of the CUDA runtime (package nvidia-cuda-runtime)"
    "MOEBIND_CCCL_HEADER|the headers of CCCL (package nvidia-cuda-cccl)"
    "MOEBIND_CUBLAS|cuBLAS (package nvidia-cublas)"
    "MOEBIND_CUBLASLT|cuBLASLt (package nvidia-cublas)"
    "MOEBIND_CUBLAS_HEADER|the headers of cuBLAS (package nvidia-cublas)")
  string(REGEX MATCH "^[^|]+" variable "${part}")
  if(NOT ${variable})
    string(REGEX REPLACE "^[^|]+\\|" "" part "${part}")
    list(APPEND missing "${part}")
  endif()
endforeach()
if(missing)
  list(JOIN missing "; " missing)
  moebind_no_cuda("not found: ${missing}" "Install it, point CUDA_HOME at a toolkit that has it")
endif()

# --- whether they belong together ------------------------------------------------------------------
if(nvcc_version AND nvcc_version VERSION_LESS MOEBIND_CUDA_OLDEST)
  moebind_no_cuda("${MOEBIND_NVCC} is of CUDA ${nvcc_version}, and ${MOEBIND_CUDA_OLDEST} is the oldest that will do"
    "Install a newer one")
endif()
string(REGEX MATCH "^[0-9]+" cuda_major "${nvcc_version}")
# A major version, from a macro of a header or the name of a library; nothing where it does not say.
function(moebind_version_of what file pattern)
  file(REAL_PATH "${file}" file)
  set(text "${file}")
  if(EXISTS "${file}" AND file MATCHES "\\.h$")
    file(STRINGS "${file}" text REGEX "${pattern}" LIMIT_COUNT 1)
  endif()
  if(text MATCHES "${pattern}" AND cuda_major AND NOT CMAKE_MATCH_1 EQUAL cuda_major)
    set(mixed "${mixed}${what} of CUDA ${CMAKE_MATCH_1} (${file}); " PARENT_SCOPE)
  endif()
endfunction()
set(mixed "")
moebind_version_of("the CUDA runtime is" "${MOEBIND_CUDART}" "\\.so\\.([0-9]+)")
moebind_version_of("its headers are" "${MOEBIND_CUDART_HEADER}/cuda_runtime_api.h" "define CUDART_VERSION +([0-9]+)0[0-9][0-9]0")
moebind_version_of("cuBLAS is" "${MOEBIND_CUBLAS}" "\\.so\\.([0-9]+)")
moebind_version_of("the headers of cuBLAS are" "${MOEBIND_CUBLAS_HEADER}/cublas_api.h" "define CUBLAS_VER_MAJOR +([0-9]+)")
if(mixed)
  string(REGEX REPLACE "; $" "" mixed "${mixed}")
  moebind_no_cuda("the parts are of different versions: ${MOEBIND_NVCC} is of CUDA ${nvcc_version}, while ${mixed}"
    "Install parts of one version, point CUDA_HOME at a toolkit that is whole")
endif()

# --- for which cards -------------------------------------------------------------------------------
# Without a card here: every one from Turing on. Where there is no code for one exactly, the driver makes it, at the
# first start, of the next older "virtual" one.
set(MOEBIND_CUDA_EVERY_CARD 75-virtual 80-virtual 86-real 89-real 90-virtual 120a-real)
string(REPLACE "," ";" architectures "${MOEBIND_CUDA_ARCHITECTURES}")
if(NOT architectures)
  set(architectures ${CMAKE_CUDA_ARCHITECTURES})
endif()
if(NOT architectures)
  set(architectures $ENV{CUDAARCHS})
endif()
set(chosen "as told")
if(architectures STREQUAL "native" OR (NOT architectures AND capabilities AND NOT MOEBIND_PORTABLE))
  if(NOT capabilities)
    message(FATAL_ERROR "MOEBIND_CUDA_ARCHITECTURES is native, but the driver shows no card here. Name what is wanted, "
      "such as 89 for the GeForce RTX 40 series.")
  endif()
  list(TRANSFORM capabilities REPLACE "\\." "" OUTPUT_VARIABLE architectures)
  list(TRANSFORM architectures APPEND "-real")
  set(chosen "this machine's cards")
elseif(NOT architectures)
  set(architectures ${MOEBIND_CUDA_EVERY_CARD})
  if(nvcc_version VERSION_LESS 12.8) # which knows no Blackwell
    list(REMOVE_ITEM architectures 120a-real)
  endif()
  set(chosen "for every card from Turing on")
endif()
# ggml takes the architecture-specific form of these, which has the instructions for FP4.
list(TRANSFORM architectures REPLACE "^(12[0-9])(-real|-virtual)?$" "\\1a\\2")
execute_process(COMMAND ${MOEBIND_NVCC} --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET RESULT_VARIABLE failed)
foreach(architecture IN LISTS architectures)
  string(REGEX MATCH "^[0-9]+" number "${architecture}")
  if(number AND known MATCHES "compute_" AND NOT known MATCHES "compute_${number}[^0-9]")
    moebind_no_cuda("nvcc ${nvcc_version} has no architecture ${number} any more, or not yet"
      "Install another version of the toolkit, name other MOEBIND_CUDA_ARCHITECTURES")
  endif()
endforeach()

# --- whether they work -----------------------------------------------------------------------------
# What pip's wheels lack, for the linker: names without versions, and the driver's library, which only lends its name.
set(links "${CMAKE_BINARY_DIR}/cuda/lib")
file(MAKE_DIRECTORY "${links}")
foreach(library IN ITEMS CUDART CUBLAS CUBLASLT)
  string(TOLOWER "${library}" name)
  string(REPLACE "blaslt" "blasLt" name "${name}")
  file(CREATE_LINK "${MOEBIND_${library}}" "${links}/lib${name}.so" SYMBOLIC)
endforeach()
execute_process(COMMAND ${CMAKE_C_COMPILER} -shared -fPIC -Wl,-soname,libcuda.so.1 -o "${links}/libcuda.so" -x c /dev/null
  COMMAND_ERROR_IS_FATAL ANY)

set(MOEBIND_CUDA_INCLUDE "${MOEBIND_CUBLAS_HEADER}" "${MOEBIND_CCCL_HEADER}")
list(REMOVE_DUPLICATES MOEBIND_CUDA_INCLUDE)
set(host "")
if(CMAKE_CUDA_HOST_COMPILER)
  set(host -ccbin "${CMAKE_CUDA_HOST_COMPILER}")
elseif(NOT "$ENV{CUDAHOSTCXX}" STREQUAL "")
  set(host -ccbin "$ENV{CUDAHOSTCXX}")
elseif(NOT "$ENV{CXX}" STREQUAL "")
  set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}") # the compiler that was asked for is nvcc's, too
  set(host -ccbin "${CMAKE_CXX_COMPILER}")
endif()
set(includes ${MOEBIND_CUDA_INCLUDE})
list(TRANSFORM includes PREPEND "-isystem=")
list(GET architectures 0 first)
string(REGEX MATCH "^[0-9]+[af]?" first "${first}")
set(arch "")
if(first)
  set(arch "-arch=compute_${first}")
endif()
execute_process(
  COMMAND ${MOEBIND_NVCC} ${host} ${arch} ${includes} -shared -Xcompiler -fPIC -L${links} -lcublas
    -o "${CMAKE_BINARY_DIR}/cuda/check.so" "${CMAKE_CURRENT_LIST_DIR}/cuda_check.cu"
  OUTPUT_VARIABLE said ERROR_VARIABLE said RESULT_VARIABLE failed)
if(failed)
  string(REGEX MATCH "[^\r\n]*[Ee]rror[^\r\n]*" reason "${said}")
  if(NOT reason)
    string(REGEX REPLACE "[\r\n]+" " " reason "${failed} ${said}")
  endif()
  string(STRIP "${reason}" reason)
  string(REPLACE ";" "," reason "${reason}")
  string(SUBSTRING "${reason}" 0 300 reason)
  moebind_no_cuda("${MOEBIND_NVCC} cannot build with these parts: ${reason}"
    "Install what it asks for, name a compiler that it takes (CUDAHOSTCXX=g++-14)")
endif()

# --- what the build gets of it ---------------------------------------------------------------------
set(GGML_CUDA ON)
set(GGML_CUDA_NCCL OFF)
set(CMAKE_CUDA_COMPILER "${MOEBIND_NVCC}")
set(CMAKE_CUDA_ARCHITECTURES ${architectures})
# These are where CMake's own search, FindCUDAToolkit, puts what it finds.
set(CUDA_CUDART "${links}/libcudart.so")
set(CUDA_cublas_LIBRARY "${links}/libcublas.so")
set(CUDA_cublasLt_LIBRARY "${links}/libcublasLt.so")
set(CUDA_cuda_driver_LIBRARY "${links}/libcuda.so")

# At run time: in pip's packages beside moebind, then where the build found them, unless those are pip's as well. Its
# build environments are gone after the build, and whoever made such a folder again could put libraries into it.
if(cuda_major EQUAL 12)
  set(MOEBIND_CUDA_RPATH ":$ORIGIN/../../nvidia/cublas/lib:$ORIGIN/../../nvidia/cuda_runtime/lib")
else()
  set(MOEBIND_CUDA_RPATH ":$ORIGIN/../../nvidia/cu${cuda_major}/lib")
endif()
set(taken "")
foreach(library IN ITEMS "${MOEBIND_CUDART}" "${MOEBIND_CUBLAS}")
  cmake_path(GET library PARENT_PATH folder)
  cmake_path(GET folder PARENT_PATH root)
  if(NOT root IN_LIST pip_toolkits)
    list(APPEND taken "${folder}")
  endif()
endforeach()
list(REMOVE_DUPLICATES taken)
foreach(folder IN LISTS taken)
  string(APPEND MOEBIND_CUDA_RPATH ":${folder}")
endforeach()

cmake_path(GET MOEBIND_CUBLAS PARENT_PATH cublas_root)
cmake_path(GET cublas_root PARENT_PATH cublas_root)
set(MOEBIND_CUDA_VERDICT "in: CUDA ${nvcc_version} of ${nvcc_root}")
if(NOT cublas_root STREQUAL nvcc_root)
  string(APPEND MOEBIND_CUDA_VERDICT " with cuBLAS of ${cublas_root}")
endif()
list(JOIN architectures " " said)
string(APPEND MOEBIND_CUDA_VERDICT ", architectures ${said} (${chosen})")
if(MOEBIND_CUDA_SMOKE)
  string(APPEND MOEBIND_CUDA_VERDICT ", a smoke build without most kernels")
endif()
