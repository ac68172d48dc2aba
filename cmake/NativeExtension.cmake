# The extension moebind/_libllama: cffi's wrappers and their guards, which native/bind/cdef.py writes, and native/'s C++.
set(native "${CMAKE_CURRENT_SOURCE_DIR}/native")
set(generated "${CMAKE_CURRENT_BINARY_DIR}/native")
set(vendored "${CMAKE_CURRENT_SOURCE_DIR}/vendor/llama.cpp")

set(linked ggml-base ggml llama llama-common mtmd)
set(loaded ${MOEBIND_BACKENDS})
list(FILTER loaded INCLUDE REGEX "^ggml-(cpu|rpc)") # nothing of ours calls others
if(NOT MOEBIND_PORTABLE)
  list(APPEND linked ${loaded})
  set(loaded "")
endif()

string(REPLACE "\"" "'" cuda "${MOEBIND_CUDA_VERDICT}")
string(REPLACE "\"" "'" vulkan "${MOEBIND_VULKAN_VERDICT}")
file(CONFIGURE OUTPUT "${generated}/build_info.h" @ONLY CONTENT
"#define MOEBIND_CUDA_VERDICT \"@cuda@\"
#define MOEBIND_VULKAN_VERDICT \"@vulkan@\"
#cmakedefine01 GGML_CUDA
#cmakedefine01 GGML_VULKAN
")

set(arguments --cc "${CMAKE_C_COMPILER}" --nm "${CMAKE_NM}" --out "${generated}")
foreach(folder IN ITEMS include ggml/include tools/mtmd)
  list(APPEND arguments --include "${vendored}/${folder}")
endforeach()
foreach(library IN LISTS linked)
  list(APPEND arguments --library $<TARGET_FILE:${library}>)
endforeach()
foreach(library IN LISTS loaded)
  list(APPEND arguments --module $<TARGET_FILE:${library}>)
endforeach()

# Globbed when CMake runs, as it does in every install.
file(GLOB generator "${native}/bind/*.py" "${native}/bind/*.h" "${native}/bind/stand-ins/*.h" "${native}/core/shim.h"
  "${native}/core/drafts.h" "${native}/core/grammars.h"
  "${vendored}/include/*.h" "${vendored}/ggml/include/*.h" "${vendored}/tools/mtmd/*.h")
# The generator leaves files that did not change alone; the stamp says when it last ran.
add_custom_command(
  OUTPUT "${generated}/generated.stamp"
  BYPRODUCTS "${generated}/_libllama.c" "${generated}/guards.cpp" "${generated}/guards.h"
  COMMAND ${Python_EXECUTABLE} "${native}/bind/cdef.py" ${arguments}
  DEPENDS ${generator} ${linked} ${loaded}
  COMMENT "Reading llama.cpp's headers"
  VERBATIM)

# What is compiled into llama.cpp's own libraries, native/replaced, is not among them.
file(GLOB sources "${native}/core/*.cpp" "${native}/peek/*.cpp" "${native}/sampling/*.cpp" "${native}/chat/*.cpp")
# Some replace llama.cpp's code from here: native/peek and native/chat tell why. What is left out, without.cpp stands in for.
set(lacking "")
if("missing-tensors" IN_LIST MOEBIND_WITHOUT)
  list(FILTER sources EXCLUDE REGEX "/missing_tensors\\.cpp$")
endif()
if("jinja-hooks" IN_LIST MOEBIND_WITHOUT)
  list(FILTER sources EXCLUDE REGEX "/template_(limits|numbers)\\.cpp$")
  list(APPEND sources "${native}/replaced/without.cpp")
endif()
foreach(name IN LISTS MOEBIND_WITHOUT)
  string(MAKE_C_IDENTIFIER "MOEBIND_WITHOUT_${name}" definition)
  string(TOUPPER "${definition}" definition)
  if(NOT name MATCHES "rpc-connections|counted-memory|checked-headers") # those are not the extension's
    list(APPEND lacking ${definition})
  endif()
endforeach()
python_add_library(_libllama MODULE USE_SABI 3.10 WITH_SOABI
  "${generated}/generated.stamp" "${generated}/_libllama.c" "${generated}/guards.cpp"
  ${sources})
target_include_directories(_libllama PRIVATE native/bind native/core native/peek native/replaced native/chat "${generated}")
target_include_directories(_libllama SYSTEM PRIVATE # llama-ext.h, and what only C++ has
  "${vendored}/src" "${vendored}/ggml/src" "${vendored}/common")
target_link_libraries(_libllama PRIVATE ${linked} ${CMAKE_DL_LIBS})
target_compile_definitions(_libllama PRIVATE ${lacking})
target_compile_features(_libllama PRIVATE cxx_std_17)
target_compile_options(_libllama PRIVATE -Wall -Wextra)
if(MOEBIND_WERROR)
  target_compile_options(_libllama PRIVATE -Werror)
endif()
# Written by machine: unused cffi helpers, and calls of what llama.h deprecates but still offers.
set_source_files_properties("${generated}/_libllama.c" "${generated}/guards.cpp" PROPERTIES
  COMPILE_OPTIONS "-Wno-unused-function;-Wno-unused-parameter;-Wno-missing-field-initializers;-Wno-deprecated-declarations;-Wno-cast-function-type")
# It defines functions in the place of ggml's, which must be seen to be called.
set_source_files_properties(native/peek/missing_tensors.cpp PROPERTIES COMPILE_OPTIONS "-fvisibility=default")
set_target_properties(_libllama PROPERTIES
  C_VISIBILITY_PRESET hidden CXX_VISIBILITY_PRESET hidden
  INSTALL_RPATH "$ORIGIN/lib")
