# Most of a cold build's time went into what computes nothing: reading the same headers once a file, and optimising code
# that parses arguments, answers HTTP requests or lists a model's tensors. So here sources are compiled several at a time
# (unity builds), and some targets with fewer optimisations. The flags of ggml's libraries and of libllama stay as they are.
#
# No precompiled headers: where sources are joined there is little left to read twice, and ccache needs laxer rules for them.

# Joins the sources of a target that match a pattern, `size` at a time, in files called unity_NAME. Those that are named at
# the end stay alone, and so do those with flags of their own. If a new llama.cpp brings two sources with the same static
# name, the compiler says so: name one of them there.
function(moebind_join target name size pattern)
  get_target_property(folder ${target} SOURCE_DIR)
  get_target_property(sources ${target} SOURCES)
  list(FILTER sources INCLUDE REGEX "${pattern}")
  list(FILTER sources INCLUDE REGEX "\\.cpp$")
  set(count 0)
  foreach(source IN LISTS sources)
    cmake_path(GET source FILENAME file)
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY "${folder}")
    get_source_file_property(flags "${source}" DIRECTORY "${folder}" COMPILE_OPTIONS)
    if(NOT flags AND NOT file IN_LIST ARGN)
      math(EXPR group "${count} / ${size}")
      math(EXPR count "${count} + 1")
      set_source_files_properties("${source}" DIRECTORY "${folder}"
        PROPERTIES SKIP_UNITY_BUILD_INCLUSION OFF UNITY_GROUP "${name}${group}")
    endif()
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()

# How far sources of a target are optimised, in a release build.
function(moebind_optimise target flags)
  get_target_property(folder ${target} SOURCE_DIR)
  list(TRANSFORM ARGN PREPEND "${folder}/")
  set_source_files_properties(${ARGN} DIRECTORY "${folder}" PROPERTIES COMPILE_OPTIONS "$<$<CONFIG:Release>:${flags}>")
endfunction()
separate_arguments(full NATIVE_COMMAND "${CMAKE_CXX_FLAGS_RELEASE}")

# libllama: of its sources llama.cpp joins only the models, 16 at a time. -fPIC keeps functions that are exported from being
# built into each other, so that joining changes no code that matters.
moebind_join(llama core 16 "^[^/]*$")
moebind_join(llama models 32 "/models/" glm5-next.cpp) # has functions of deepseek4.cpp's names

# llama-common: templates of chats, grammars of schemas and replies take up to a fifth longer with -O1, milliseconds, but twice
# as long with -Og. No option may let calls of exported functions be resolved early: native/chat/template_limits.cpp
# stands in for two of them. What looks at all tokens of a vocabulary or of a context is optimised as before.
target_compile_options(llama-common PRIVATE $<$<CONFIG:Release>:-O1>)
moebind_optimise(llama-common "${full}" sampling.cpp ngram-cache.cpp ngram-map.cpp ngram-mod.cpp)
moebind_join(llama-common common 15 "" json.cpp) # calls something else ordered_json than chat-peg-parser.cpp does
set_property(TARGET llama-common PROPERTY UNITY_BUILD_CODE_BEFORE_INCLUDE "#undef FILENAME") # each of jinja's has its own

# mtmd: one source a kind of model, which lists its operations for ggml to compute. Pictures are scaled and sound is
# transformed by three others, as before; mtmd-helper.cpp decodes files.
target_compile_options(mtmd PRIVATE $<$<CONFIG:Release>:-Og>)
moebind_optimise(mtmd "${full}" mtmd-image.cpp mtmd-audio.cpp mtmd-helper-gen.cpp)
moebind_optimise(mtmd -O1 mtmd-helper.cpp)
moebind_join(mtmd mtmd 100 "")

# llama-server: waits for the libraries above. -Og takes a quarter less to compile than -O1.
foreach(target IN ITEMS cpp-httplib server-context llama-server-impl)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-Og>)
endforeach()
moebind_join(server-context server 10 "")
moebind_join(llama-server-impl server 10 "")
