# What takes the place of llama.cpp's own code in its libraries: native/replaced/README.md says why, for each. What
# MOEBIND_WITHOUT names is left as llama.cpp has it, so that an upgrade works before all of it is ported; without.cpp then
# stands in for what the extension calls of it. Patches, vendor/patches, are left out by cmake/VendoredSource.cmake.
set(replaced "${CMAKE_CURRENT_SOURCE_DIR}/native/replaced")

# Of the sources of a target replace one, which must be there.
function(moebind_replace target source ours)
  get_property(sources TARGET ${target} PROPERTY SOURCES)
  if(NOT "${source}" IN_LIST sources)
    message(FATAL_ERROR "${target} of this llama.cpp has no source ${source}, which ${ours} takes the place of: port that, or "
      "leave it out for now (MOEBIND_WITHOUT, in cmake/Replacements.cmake).")
  endif()
  list(TRANSFORM sources REPLACE "^${source}$" "${ours}")
  set_property(TARGET ${target} PROPERTY SOURCES ${sources})
endfunction()

# Compile a source behind a header of ours, which is needless where it does not have this text.
function(moebind_compile_behind header folder source text)
  set(path "${CMAKE_CURRENT_SOURCE_DIR}/vendor/llama.cpp/${folder}/${source}")
  file(READ "${path}" content)
  string(FIND "${content}" "${text}" found)
  if(found EQUAL -1)
    message(FATAL_ERROR "${source} of this llama.cpp has no \"${text}\", which native/replaced/${header} is for: port that, or leave it "
      "out for now (MOEBIND_WITHOUT, in cmake/Replacements.cmake).")
  endif()
  set_source_files_properties("${path}" DIRECTORY "vendor/llama.cpp/${folder}"
    PROPERTIES COMPILE_OPTIONS "-include;${replaced}/${header}")
endfunction()

# Stands in for what is left out of a target.
function(moebind_stand_in target name)
  string(MAKE_C_IDENTIFIER "MOEBIND_WITHOUT_${name}" definition)
  string(TOUPPER "${definition}" definition)
  target_sources(${target} PRIVATE "${replaced}/without.cpp")
  target_compile_definitions(${target} PRIVATE ${definition})
endfunction()

# Connections that survive the server's death: ggml-rpc.cpp is included by ours, in which transport.cpp's functions are.
if("rpc-connections" IN_LIST MOEBIND_WITHOUT)
  moebind_stand_in(ggml-rpc rpc-connections)
else()
  moebind_replace(ggml-rpc ggml-rpc.cpp "${replaced}/rpc_connections.cpp")
  moebind_replace(ggml-rpc transport.cpp "${replaced}/rpc_link.h")
  target_include_directories(ggml-rpc PRIVATE vendor/llama.cpp/ggml/src/ggml-rpc)
endif()

if("counted-memory" IN_LIST MOEBIND_WITHOUT)
  moebind_stand_in(ggml-base counted-memory)
endif()

# What was checked is what is loaded, and is read once.
if("checked-headers" IN_LIST MOEBIND_WITHOUT)
  moebind_stand_in(llama checked-headers)
else()
  moebind_compile_behind(checked_headers.h src llama-model-loader.cpp "gguf_init_from_file(")
  target_sources(llama PRIVATE "${replaced}/checked_headers.cpp")
endif()

# A library prints nothing: Context.chat warns about schemas that are not enforced.
if(NOT "schema-log" IN_LIST MOEBIND_WITHOUT)
  moebind_compile_behind(schema_log.h common json-schema-to-grammar.cpp "fprintf(stderr")
endif()

# Pixels that a damaged picture lacks are black: stb_image gets memory of zeros.
if(NOT "stb-memory" IN_LIST MOEBIND_WITHOUT)
  moebind_compile_behind(stb_memory.h tools/mtmd mtmd-helper.cpp "define STB_IMAGE_IMPLEMENTATION")
endif()
