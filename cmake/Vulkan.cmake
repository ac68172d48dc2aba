# Decides whether ggml-vulkan is built (MOEBIND_VULKAN=AUTO|ON|OFF) and says why in MOEBIND_VULKAN_VERDICT. It takes the
# compiler of shaders, glslc, the headers of Vulkan and of SPIR-V, and the loader's library: of the system, or of the SDK
# that VULKAN_SDK names. LoadedBackends.cmake tells how it is built.
set(MOEBIND_VULKAN_OLDEST 1.3.239) # Debian 12's, the oldest that was tried
set(GGML_VULKAN OFF)
string(TOUPPER "${MOEBIND_VULKAN}" MOEBIND_VULKAN)
if(NOT MOEBIND_VULKAN MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "MOEBIND_VULKAN is '${MOEBIND_VULKAN}'; it takes AUTO, ON or OFF.")
endif()
if(MOEBIND_VULKAN STREQUAL OFF)
  set(MOEBIND_VULKAN_VERDICT "out: MOEBIND_VULKAN=OFF")
  return()
endif()

# Something is in the way: fatal if Vulkan was asked for, otherwise the end of this file.
macro(moebind_no_vulkan why what_to_do)
  set(MOEBIND_VULKAN_VERDICT "out: ${why}")
  if(MOEBIND_VULKAN STREQUAL ON)
    message(FATAL_ERROR "MOEBIND_VULKAN=ON, but ${why}. ${what_to_do}, or set MOEBIND_VULKAN=OFF.")
  endif()
  return()
endmacro()

# --- where the parts are ---------------------------------------------------------------------------
set(sdk NO_CACHE HINTS $ENV{VULKAN_SDK})
find_program(MOEBIND_GLSLC glslc ${sdk} PATH_SUFFIXES bin)
find_path(MOEBIND_VULKAN_HEADERS vulkan/vulkan.hpp ${sdk} PATH_SUFFIXES include)
find_library(MOEBIND_VULKAN_LIBRARY vulkan ${sdk} PATH_SUFFIXES lib)
find_package(SPIRV-Headers CONFIG QUIET HINTS $ENV{VULKAN_SDK}) # as ggml-vulkan asks for them

set(missing "")
if(NOT MOEBIND_GLSLC)
  list(APPEND missing "the compiler of shaders glslc (package glslc)")
endif()
if(NOT MOEBIND_VULKAN_HEADERS)
  list(APPEND missing "the headers of Vulkan (package libvulkan-dev)")
endif()
if(NOT MOEBIND_VULKAN_LIBRARY)
  list(APPEND missing "the library of Vulkan's loader (package libvulkan-dev)")
endif()
if(NOT SPIRV-Headers_FOUND)
  list(APPEND missing "the headers of SPIR-V (package spirv-headers)")
endif()
if(missing)
  list(JOIN missing "; " missing)
  moebind_no_vulkan("not found: ${missing}" "Install it, point VULKAN_SDK at an SDK that has it")
endif()

# --- whether they will do --------------------------------------------------------------------------
file(STRINGS "${MOEBIND_VULKAN_HEADERS}/vulkan/vulkan_core.h" said REGEX "define VK_HEADER_VERSION(_COMPLETE)? ")
string(REGEX REPLACE ".*define VK_HEADER_VERSION ([0-9]+).*" "\\1" patch "${said}")
string(REGEX REPLACE ".*MAKE_API_VERSION\\([0-9]+, *([0-9]+), *([0-9]+),.*" "\\1.\\2" version "${said}")
set(version "${version}.${patch}")
if(NOT version MATCHES "^[0-9]+\\.[0-9]+\\.[0-9]+$")
  set(version 0)
endif()
if(version VERSION_LESS MOEBIND_VULKAN_OLDEST)
  moebind_no_vulkan("the headers of Vulkan in ${MOEBIND_VULKAN_HEADERS} are of version ${version}, and \
${MOEBIND_VULKAN_OLDEST} is the oldest that will do" "Install newer ones")
endif()
execute_process(COMMAND ${MOEBIND_GLSLC} --version OUTPUT_VARIABLE said ERROR_VARIABLE said RESULT_VARIABLE failed)
string(REGEX MATCH "shaderc v?([^ \r\n]+)" said "${said}")
set(glslc_version "${CMAKE_MATCH_1}")
if(failed OR NOT said)
  moebind_no_vulkan("${MOEBIND_GLSLC} does not say its version (${failed}): it is no glslc that works" "Install another one")
endif()

# --- what the build gets of it ---------------------------------------------------------------------
set(GGML_VULKAN ON)
# CMake's own search, FindVulkan, takes these.
set(Vulkan_INCLUDE_DIR "${MOEBIND_VULKAN_HEADERS}")
set(Vulkan_LIBRARY "${MOEBIND_VULKAN_LIBRARY}")
# Shaders take ten times as long as all else of ggml-vulkan, and ccache does not know them: cached_glslc.py keeps them.
file(GLOB shaders "${CMAKE_CURRENT_SOURCE_DIR}/vendor/llama.cpp/ggml/src/ggml-vulkan/vulkan-shaders/*")
set(hashes "")
foreach(shader IN LISTS shaders)
  if(NOT IS_DIRECTORY "${shader}")
    file(SHA256 "${shader}" hash)
    string(APPEND hashes "${hash}")
  endif()
endforeach()
file(SHA256 "${MOEBIND_GLSLC}" hash)
string(SHA256 hash "${hashes}${hash}")
set(Vulkan_GLSLC_EXECUTABLE "${CMAKE_BINARY_DIR}/vulkan/glslc")
file(CONFIGURE OUTPUT "${Vulkan_GLSLC_EXECUTABLE}" @ONLY CONTENT
"#!/bin/sh
exec '${Python_EXECUTABLE}' -S -I '${CMAKE_CURRENT_LIST_DIR}/cached_glslc.py' '${MOEBIND_GLSLC}' ${hash} \"$@\"
")
file(CHMOD "${Vulkan_GLSLC_EXECUTABLE}" FILE_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
set(MOEBIND_VULKAN_VERDICT "in: headers ${version}, glslc ${glslc_version}")
